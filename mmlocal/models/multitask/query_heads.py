"""Heads whose tasks exchange information: the decoder of DeMT, and ITSA's.

Source:
    DeMT: Deformable Mixer Transformer for Multi-Task Learning of Dense Prediction, Xu et al. 2023,
    https://arxiv.org/abs/2301.03461, and its code. Efficient Inter-Task Attention for Multitask
    Transformer Models, Bohn et al. 2025, https://arxiv.org/abs/2508.04422, section 3; its code was
    not published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmlocal.layers import DeformableMixer, InterTaskBlock, TaskInteraction, TaskQuery
from mmlocal.models.multitask.head import MultiTaskHead
from mmlocal.registry import MODELS


class _QueryHead(MultiTaskHead):
    """A head whose tasks exchange information, and whose pixels then query the result."""

    interaction: Any  # of each kind of head

    def _add_exchange(
        self, mixer: dict | None, num_heads: int, interaction: nn.Module, legacy: bool = False
    ) -> None:
        """Build the layers between the joined map and the heads of the tasks."""
        self.mixers = self._per_task(
            DeformableMixer(self.channels, **(mixer or {})) for _ in self.tasks
        )
        self.interaction = interaction
        self.queries = self._per_task(
            TaskQuery(self.channels, num_heads=num_heads, legacy=legacy) for _ in self.tasks
        )

    def exchange(self, maps: list[Tensor]) -> list[Tensor]:
        """Let the tasks exchange information by attention.

        Args:
            maps: a map ``(B, channels, H, W)`` for each task.

        Returns:
            A map of the same shape for each task.
        """
        mixed = self.mix(maps)
        return self.query(mixed, self.interaction(mixed))

    def mix(self, maps: list[Tensor]) -> Tensor:
        """Let the pixels of each task exchange information: ``(B, T, H, W, channels)``.

        Args:
            maps: a map ``(B, channels, H, W)`` for each of the T tasks.
        """
        mixed = (
            self.mixers[task.name](x).permute(0, 2, 3, 1)
            for task, x in zip(self.tasks, maps, strict=True)
        )
        return torch.stack(tuple(mixed), dim=1)

    def query(self, mixed: Tensor, tokens: Tensor) -> list[Tensor]:
        """Let the pixels of each task query the exchanged information.

        Args:
            mixed: output of :meth:`mix`.
            tokens: output of the interaction, of the same shape.

        Returns:
            A map ``(B, channels, H, W)`` for each task.
        """
        return [
            self.queries[task.name](x, tokens).permute(0, 3, 1, 2)
            for task, x in zip(self.tasks, mixed.unbind(dim=1), strict=True)
        ]


@MODELS.register_module()
class DeMTHead(_QueryHead):
    """The decoder of DeMT: deformable mixers, attention among all tasks, and task queries.

    Each task gets the joined map through a mixer of its own
    (:class:`~mmlocal.layers.DeformableMixer`). All pixels of all tasks attend to each other
    (:class:`~mmlocal.layers.TaskInteraction`). The pixels of each task then attend to the result
    (:class:`~mmlocal.layers.TaskQuery`), and go to the head of the task.

    Args:
        in_channels: see :class:`MultiTaskHead`, as for ``tasks`` and ``**kwargs``.
        tasks: options of each task.
        mixer: arguments of the mixers. ``depth=2`` is "xd=2" of the published results, and
            ``residual_first=True`` is for weights from before March 2023.
        num_heads: heads of each attention; must divide ``channels``.
        legacy: whether to compute what the published code did with one image per process, for its
            weights. :class:`~mmlocal.layers.TaskInteraction` explains it.
        **kwargs: other arguments of :class:`MultiTaskHead`.

    Raises:
        ValueError: see :class:`MultiTaskHead`; or ``num_heads`` does not divide ``channels``.
        TypeError: an argument has another type.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        tasks: Mapping[str, Mapping[str, Any]],
        mixer: dict | None = None,
        num_heads: int = 4,
        legacy: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, tasks, **kwargs)
        interaction = TaskInteraction(self.channels, num_heads=num_heads, legacy=legacy)
        self._add_exchange(mixer, num_heads, interaction, legacy)


@MODELS.register_module()
class ITSAHead(_QueryHead):
    """DeMT with deformable attention among the tasks (ITSA) in place of global attention.

    Args:
        in_channels: see :class:`MultiTaskHead`, as for ``tasks`` and ``**kwargs``.
        tasks: options of each task.
        mixer: arguments of the mixers, see :class:`DeMTHead`.
        num_heads: heads of the task queries; must divide ``channels``.
        interaction: arguments of :class:`~mmlocal.layers.InterTaskBlock`, such as ``num_steps``,
            ``num_levels`` and ``num_points``.
        **kwargs: other arguments of :class:`MultiTaskHead`.

    Raises:
        ValueError: see :class:`DeMTHead`; or an argument of ``interaction`` is out of range.
        TypeError: an argument has another type.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        tasks: Mapping[str, Mapping[str, Any]],
        mixer: dict | None = None,
        num_heads: int = 4,
        interaction: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, tasks, **kwargs)
        block = InterTaskBlock(
            embed_dims=self.channels, num_tasks=len(self.tasks), **(interaction or {})
        )
        self._add_exchange(mixer, num_heads, block)

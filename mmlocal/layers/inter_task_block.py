"""The block of deformable inter-task self-attention: positions, refinement steps, and the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, check_choice, check_flag, check_int
from mmlocal.layers.inter_task_attention import InterTaskAttention
from mmlocal.layers.task_attention import linear_norm
from mmlocal.layers.task_checks import check_task_maps
from mmlocal.layers.task_positions import POSITIONS, task_positions


class InterTaskBlock(Unscripted, nn.Module):
    """Several steps of :class:`InterTaskAttention` between position channels and a linear layer.

    The block concatenates ``position_channels`` sines and cosines of the pixels' positions to the
    maps, refines them ``num_steps`` times, drops the last ``position_channels`` channels, and
    applies a linear layer and a layer norm. It takes the place of
    :class:`~mmlocal.layers.TaskInteraction` in DeMT.

    Args:
        embed_dims: channels in and out.
        num_tasks: number of tasks.
        num_steps: number of steps.
        num_heads: must divide ``embed_dims + position_channels``.
        position_channels: channels of the positions, a multiple of 4; 0 for none.
        positions: ``"canvas"`` for positions in the maps of all tasks below each other, which tell
            tasks apart; ``"task"`` for positions in the map of each task; ``None`` for no position
            channels, whatever ``position_channels`` says.
        normalize_positions: whether positions are fractions of the height and width, as in DETR;
            otherwise they count pixels.
        reattach_positions: whether each step begins with fresh position channels; otherwise the
            first step alone, and all steps change them.
        share_steps: whether all steps have the same weights.
        **step: further arguments of :class:`InterTaskAttention`: ``num_levels``, ``num_points``,
            ``ffn_channels``, ``dropout``, ``padding_mode``, ``offset_grad_scale``,
            ``grad_scale_scope``, ``offset_init``, ``downsample``, ``share_downsample``,
            ``level_source``, ``map_order``, ``ffn_norm`` and ``backend``. The default of
            ``ffn_channels`` is four times the channels with positions, 1120.

    Raises:
        ValueError: ``num_heads`` does not divide the channels of a step, ``position_channels`` is
            no multiple of 4, a count is below 1, or an argument of the steps is out of range.
        TypeError: an argument has another type, or there is no argument of this name.

    Note:
        The source gives 3 steps, 24 position channels, and a factor of 100. No source states the
        formula of the positions, whether each task has positions of its own, whether steps get
        fresh positions, whether they share weights, or which parameters get the factor. The
        defaults are choices.

    Source:
        Efficient Inter-Task Attention for Multitask Transformer Models, Bohn et al. 2025.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_tasks: int = 4,
        num_steps: int = 3,
        num_heads: int = 4,
        position_channels: int = 24,
        positions: str | None = "canvas",
        normalize_positions: bool = True,
        reattach_positions: bool = False,
        share_steps: bool = False,
        **step: Any,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_tasks=num_tasks, num_steps=num_steps)
        check_int(0, position_channels=position_channels)
        check_int(num_heads=num_heads)
        check_flag(share_steps=share_steps, reattach_positions=reattach_positions)
        check_flag(normalize_positions=normalize_positions)
        if positions is None:
            position_channels = 0
        else:
            check_choice(POSITIONS, positions=positions)
        if position_channels % 4:
            raise ValueError(
                "position_channels must be a multiple of 4, for sines and cosines of rows and "
                f"columns, got {position_channels}"
            )
        channels = embed_dims + position_channels
        if channels % num_heads:
            raise ValueError(
                f"num_heads must divide embed_dims + position_channels = {embed_dims} + "
                f"{position_channels} = {channels}, got num_heads={num_heads}"
            )
        self.embed_dims = embed_dims
        self.num_tasks = num_tasks
        self.num_steps = num_steps
        self.position_channels = position_channels
        self.positions = positions
        self.normalize_positions = normalize_positions
        self.reattach_positions = reattach_positions
        self.steps = nn.ModuleList(
            InterTaskAttention(channels, num_tasks, num_heads=num_heads, **step)
            for _ in range(1 if share_steps else num_steps)
        )
        self.smlp = linear_norm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, num_tasks, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
            TypeError: ``x`` is not a tensor of floats.
        """
        for index in range(self.num_steps):
            x = self._step(index)(self._input_of_step(x, index))
        return self._finish(x)

    def refine(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, list[tuple[int, int]]]]]:
        """Do the same as :meth:`forward`, and keep the pyramids of each step.

        Args:
            x: ``(B, num_tasks, H, W, embed_dims)``.

        Returns:
            The output, of the shape of ``x``, and the output of
            :class:`~mmlocal.layers.TaskPyramid` in each step, with ``embed_dims +
            position_channels`` channels.
        """
        pyramids = []
        for index in range(self.num_steps):
            x, pyramid = self._step(index).refine(self._input_of_step(x, index))
            pyramids.append(pyramid)
        return self._finish(x), pyramids

    def sampled_positions(
        self, x: Tensor, step: int = 0
    ) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Compute which positions each pixel reads in one step, to draw them.

        Args:
            x: ``(B, num_tasks, H, W, embed_dims)``.
            step: index of the step, from 0; negative numbers count from the last step.

        Returns:
            Positions, weights and sizes, as :meth:`InterTaskAttention.sampled_positions` has them.

        Raises:
            ValueError: ``x`` has another shape, or there is no such step.
        """
        if not -self.num_steps <= step < self.num_steps:
            raise ValueError(f"step must be below num_steps={self.num_steps}, got {step}")
        last = step % self.num_steps
        for index in range(last):
            x = self._step(index)(self._input_of_step(x, index))
        return self._step(last).sampled_positions(self._input_of_step(x, last))

    def _finish(self, x: Tensor) -> Tensor:
        return self.smlp(x[..., : self.embed_dims])

    def _step(self, index: int) -> InterTaskAttention:
        step = self.steps[index % len(self.steps)]
        assert isinstance(step, InterTaskAttention)
        return step

    def _input_of_step(self, x: Tensor, index: int) -> Tensor:
        if index == 0:
            check_task_maps(x, self.embed_dims, self.num_tasks)
        if self.position_channels == 0 or (index and not self.reattach_positions):
            return x
        assert self.positions is not None
        positions = task_positions(
            x, self.position_channels, self.positions, self.normalize_positions
        )
        return torch.cat((x[..., : self.embed_dims], positions), dim=4)

"""The plain head of several dense tasks, on which the heads of DeMT and ITSA build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, normal_init
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmlocal.layers.checks import check_flag, check_int, check_ints
from mmlocal.models.multitask.encoder import MapEncoder
from mmlocal.models.multitask.loading import refuse_other_heads_on_load
from mmlocal.models.multitask.outputs import (
    build_loss,
    channels_of,
    check_classes,
    check_tasks,
    stack_labels,
)
from mmlocal.registry import MODELS
from mmlocal.tasks import IGNORE

# The maps of one backbone, in a sequence; or a dict of such sequences by task.
Feats = Any


@MODELS.register_module()
class MultiTaskHead(BaseModule):
    """One small head per task on the maps of a backbone.

    The maps become one map of ``channels`` channels (:class:`~.encoder.MapEncoder`). From there,
    each task has a 3x3 convolution to ``sum(in_channels) // 8`` channels, a norm and ReLU, and a
    1x1 convolution to the channels of the task.

    This is the multi-task baseline of the papers' tables. With ``share_backbone=False`` of
    :class:`MultiTaskSegmentor`, it is the single-task baseline for all tasks at once.

    Args:
        in_channels: channels of each map that ``in_index`` names.
        tasks: options of each task by name, in the order of the outputs. ``num_classes`` is the
            number of classes of ``semseg`` and ``human_parts``, background included. ``loss`` is
            the config of the loss; the default is the papers' loss with its weight.
        channels: channels of the joined map.
        in_index: index of each used map among the maps of the backbone; ``None`` for the first
            ``len(in_channels)``. All maps are resized to the first one.
        norm_cfg: config of the norms behind the 3x3 convolutions.
        align_corners: argument of :func:`torch.nn.functional.interpolate` in each resizing.
        share_encoder: whether all tasks use one joined map. ``MultiTaskSegmentor`` sets it to its
            ``share_backbone``.
        init_cfg: MMEngine's config of the initialisation.

    Raises:
        ValueError: a task is unknown, ``num_classes`` of a task is missing, ``in_channels`` and
            ``in_index`` have different lengths, or a number is too small.
        TypeError: an argument has another type.
    """

    encoder: Any  # a MapEncoder, or a ModuleDict by task

    def __init__(
        self,
        in_channels: Sequence[int],
        tasks: Mapping[str, Mapping[str, Any]],
        channels: int = 256,
        in_index: Sequence[int] | None = None,
        norm_cfg: dict | None = None,
        align_corners: bool = False,
        share_encoder: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.tasks = check_tasks(tasks)
        check_ints(in_channels=in_channels)
        check_int(channels=channels)
        check_flag(align_corners=align_corners, share_encoder=share_encoder)
        in_index = range(len(in_channels)) if in_index is None else in_index
        check_ints(0, in_index=in_index)
        if len(in_channels) != len(in_index):
            raise ValueError(
                "in_channels must have one entry for each map of in_index, got "
                f"{len(in_channels)} and {len(in_index)}"
            )
        width = sum(in_channels) // 8
        if width == 0:
            raise ValueError(f"in_channels must have a sum of at least 8, got {in_channels}")
        self.channels = channels
        self.align_corners = align_corners
        self.share_encoder = share_encoder
        # mmseg's tools ask for the number of semantic classes.
        self.num_classes = tasks.get("semseg", {}).get("num_classes")

        encoder = partial(MapEncoder, in_channels, channels, in_index, align_corners)
        self.encoder = encoder() if share_encoder else self._per_task(encoder() for _ in self.tasks)
        bottlenecks = [
            ConvModule(channels, width, 3, padding=1, norm_cfg=norm_cfg or dict(type="BN"))
            for _ in self.tasks
        ]
        conv_outs = [
            nn.Conv2d(width, channels_of(task, tasks[task.name]), 1) for task in self.tasks
        ]
        for bottleneck, conv_out in zip(bottlenecks, conv_outs, strict=True):
            bottleneck.conv.reset_parameters()  # the papers' code keeps PyTorch's initialisation
            normal_init(conv_out, std=0.01)
        self.bottlenecks = self._per_task(bottlenecks)
        self.conv_outs = self._per_task(conv_outs)
        self.losses = self._per_task(build_loss(task, tasks[task.name]) for task in self.tasks)
        refuse_other_heads_on_load(self)

    def forward(self, feats: Feats) -> dict[str, Tensor]:
        """Compute the outputs of all tasks.

        Args:
            feats: maps ``(B, C_i, H_i, W_i)`` of a backbone; without ``share_encoder``, maps of
                one backbone per task, by name.

        Returns:
            Logits ``(B, C_task, H, W)`` by task, in the size of the first used map.

        Raises:
            ValueError: there are too few maps, or one has other channels.
        """
        return self.outputs(self.exchange(self.encode(feats)))

    def encode(self, feats: Feats) -> list[Tensor]:
        """Join the maps of the backbone to one map ``(B, channels, H, W)`` for each task.

        Args:
            feats: output of the backbone, as in :meth:`forward`.
        """
        if self.share_encoder:
            return [self.encoder(feats)] * len(self.tasks)
        return [self.encoder[task.name](feats[task.name]) for task in self.tasks]

    def outputs(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Compute the logits ``(B, C_task, H, W)`` by task.

        Args:
            maps: a map ``(B, channels, H, W)`` for each task.
        """
        return {
            task.name: self.conv_outs[task.name](self.bottlenecks[task.name](x))
            for task, x in zip(self.tasks, maps, strict=True)
        }

    def exchange(self, maps: list[Tensor]) -> list[Tensor]:
        """Let the tasks exchange information; here they do not.

        Args:
            maps: a map ``(B, channels, H, W)`` for each task.

        Returns:
            A map of the same shape for each task.
        """
        return maps

    def loss(
        self,
        feats: Feats,
        data_samples: Sequence[SegDataSample],
        train_cfg: dict | None = None,
        *,
        size: Sequence[int],
    ) -> dict[str, Tensor]:
        """Compute the loss of each task.

        Args:
            feats: output of the backbone, as in :meth:`forward`.
            data_samples: a sample for each image, with the labels of each task.
            train_cfg: unused.
            size: height and width of the images of the batch.

        Returns:
            ``loss_<task>`` by task, with its weight.

        Raises:
            ValueError: the labels of a task are missing, have another size than the images, or are
                no classes of the task.
        """
        labels = {task.name: stack_labels(task, data_samples, size) for task in self.tasks}
        return self.losses_of(self.forward(feats), labels)

    def losses_of(self, logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute ``loss_<task>`` by task, with its weight.

        Args:
            logits: output of :meth:`forward`.
            labels: labels of the batch by task, from :func:`~.outputs.stack_labels`.

        Raises:
            ValueError: a label is no class of its task.
        """
        for task in self.tasks:
            check_classes(task, labels[task.name], logits[task.name].shape[1])
        return {
            f"loss_{name}": self.losses[name](
                self.resize(logits[name], label.shape[-2:]).float(), label, ignore_index=IGNORE
            )
            for name, label in labels.items()
        }

    def predict(self, feats: Feats, size: Sequence[int]) -> dict[str, Tensor]:
        """Compute the outputs of all tasks in the size of the images.

        Args:
            feats: output of the backbone, as in :meth:`forward`.
            size: height and width of the images of the batch.

        Returns:
            Logits ``(B, C_task, *size)`` by task.
        """
        return {name: self.resize(x, size) for name, x in self.forward(feats).items()}

    def resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Resize logits ``(B, C_task, H, W)`` to a height and width in pixels.

        Args:
            logits: one output of :meth:`forward`.
            size: height and width.
        """
        return F.interpolate(
            logits, size=tuple(size), mode="bilinear", align_corners=self.align_corners
        )

    def _per_task(self, modules: Any) -> nn.ModuleDict:
        """Name modules by the tasks."""
        return nn.ModuleDict(
            {task.name: module for task, module in zip(self.tasks, modules, strict=True)}
        )

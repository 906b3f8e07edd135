"""Pyramids of the maps of several tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, check_choice, check_flag, check_int
from mmlocal.layers.task_checks import check_task_maps

DOWNSAMPLES = ("conv", "conv1x1_pool")
LEVEL_SOURCES = ("previous", "first")
MAP_ORDERS = ("level", "task")


class TaskPyramid(Unscripted, nn.Module):
    """One pyramid per task: each level has half the height and width of the level below it.

    Level 0 is the map itself. Sizes are rounded up. There is no norm and no activation.

    Args:
        embed_dims: channels of all levels.
        num_tasks: number of tasks.
        num_levels: number of levels, level 0 included.
        downsample: ``"conv"`` for a 3x3 convolution with stride 2, ``"conv1x1_pool"`` for a 1x1
            convolution and 2x2 max-pooling.
        share: whether all tasks have the same weights. Levels have weights of their own.
        level_source: ``"previous"``: each level is made from the level below it. ``"first"``: each
            level is made from level 0, with a stride of 2 to the power of its number.
        map_order: order of the maps in the output. ``"level"``: all tasks of level 0 come first.
            ``"task"``: all levels of the first task come first.

    Raises:
        ValueError: a count is below 1, or a name is unknown.
        TypeError: an argument has another type.

    Note:
        The source names a 3x3 convolution with stride 2, and a variant of its ablation with the
        other down-sampling. No source states whether tasks share weights, from which level a level
        is made, or the order of the maps. The defaults are choices.

    Source:
        Efficient Inter-Task Attention for Multitask Transformer Models, Bohn et al. 2025.
    """

    def __init__(
        self,
        embed_dims: int,
        num_tasks: int,
        num_levels: int = 3,
        downsample: str = "conv",
        share: bool = False,
        level_source: str = "previous",
        map_order: str = "level",
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_tasks=num_tasks, num_levels=num_levels)
        check_choice(DOWNSAMPLES, downsample=downsample)
        check_choice(LEVEL_SOURCES, level_source=level_source)
        check_choice(MAP_ORDERS, map_order=map_order)
        check_flag(share=share)
        self.embed_dims = embed_dims
        self.num_tasks = num_tasks
        self.level_source = level_source
        self.map_order = map_order
        self.halvings = nn.ModuleList(
            _Shrinking(
                embed_dims,
                1 if share else num_tasks,
                downsample,
                factor=2 if level_source == "previous" else 2**level,
            )
            for level in range(1, num_levels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """Compute all maps of all tasks.

        Args:
            x: ``(B, num_tasks, H, W, embed_dims)``.

        Returns:
            The pixels of all maps, one map after the other, ``(B, S, embed_dims)``, and the height
            and width of each of the ``num_levels * num_tasks`` maps, in the order of
            ``map_order``. Within a level, tasks keep their order.

        Raises:
            ValueError: ``x`` has another shape.
            TypeError: ``x`` is not a tensor of floats.
        """
        check_task_maps(x, self.embed_dims, self.num_tasks)
        levels = [x]
        for halving in self.halvings:
            levels.append(halving(levels[-1] if self.level_source == "previous" else x))
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        if self.map_order == "task":
            maps = [level[:, task] for task in range(self.num_tasks) for level in levels]
            return torch.cat([one.flatten(1, 2) for one in maps], dim=1), sizes * self.num_tasks
        shapes = [size for size in sizes for _ in range(self.num_tasks)]
        return torch.cat([level.flatten(1, 3) for level in levels], dim=1), shapes


class _Shrinking(nn.Module):
    """One level of all tasks: it divides height and width of ``(B, T, H, W, C)`` by a factor.

    Args:
        embed_dims: channels.
        num_layers: one for each task, or 1 for a layer that all tasks share.
        downsample: as in :class:`TaskPyramid`.
        factor: 2, or 4 for two levels at once, and so on.
    """

    def __init__(self, embed_dims: int, num_layers: int, downsample: str, factor: int) -> None:
        super().__init__()

        def layer() -> nn.Module:
            if downsample == "conv":
                return nn.Conv2d(embed_dims, embed_dims, 3, stride=factor, padding=1)
            return nn.Sequential(
                nn.Conv2d(embed_dims, embed_dims, 1), nn.MaxPool2d(factor, ceil_mode=True)
            )

        self.tasks = nn.ModuleList(layer() for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        maps = x.permute(0, 1, 4, 2, 3)
        if len(self.tasks) == 1:
            # A shared layer takes the maps of all tasks as one batch.
            half = self.tasks[0](maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        else:
            half = torch.stack(
                [layer(one) for layer, one in zip(self.tasks, maps.unbind(1), strict=True)], dim=1
            )
        return half.permute(0, 1, 3, 4, 2)

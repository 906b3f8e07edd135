"""FLOPs of deformable attention, and the cases that the benchmark times.

A case is a multi-task model: each task has one map of ``height x width`` pixels and smaller ones,
each half as high and wide as the one before. The pixels of the largest maps are the queries, and
each looks at all maps. ``kernel_size`` is the number of points of a query, head and map.
``variant`` gives the numbers of tasks and levels, such as ``"4 tasks, 3 levels"``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from mmlocal.ops.cases import Case, Make


def _flops(value_shape: Sequence[int], *shapes: Any, **kwargs: Any) -> int:
    """Per sample and channel: 4 products and 3 sums to interpolate, 1 of each to weight."""
    weights_shape = next(x for x in shapes if len(x) == 5)
    return 9 * prod(weights_shape) * value_shape[3]


# Formulas for torch.utils.flop_counter by operator, see mmlocal.ops.elsa.analysis. One product or
# one sum is one FLOP.
FLOPS: dict[str, Callable[..., int]] = {
    "mmlocal::deformable_attention": _flops,
    "mmlocal::deformable_attention_from_offsets": _flops,
}

# Neither convolutions nor window attention stand beside an op without windows.
WINDOWS = False

_NYUD = "4 tasks, 3 levels"
_PASCAL = "5 tasks, 3 levels"

# Sets of shapes by name.
CASES: dict[str, list[Case]] = {
    "tasks": [
        Case("deformable", "NYUD-v2, 53x70", 1, 280, 4, 53, 70, 16, variant=_NYUD),
        Case("deformable", "NYUD-v2, 107x140", 1, 280, 4, 107, 140, 16, variant=_NYUD),
        Case("deformable", "PASCAL-Context, 128x128", 1, 280, 4, 128, 128, 16, variant=_PASCAL),
    ],
    "smoke": [
        Case("deformable", "tiny", 2, 16, 2, 9, 11, 3, variant="2 tasks, 2 levels"),
    ],
}


def spatial_shapes(case: Case) -> list[tuple[int, int]]:
    """Return height and width of each map, largest maps first, and tasks inside a level."""
    numbers = re.fullmatch(r"(\d+) tasks, (\d+) levels", case.variant)
    if numbers is None:
        raise ValueError(f"variant must be like {_NYUD!r}, got {case.variant!r}")
    tasks, levels = map(int, numbers.groups())
    sizes = [(case.height, case.width)]
    for _ in range(levels - 1):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return [size for size in sizes for _ in range(tasks)]


def make_inputs(case: Case, make: Make) -> dict[str, Tensor]:
    """Return the tensors of a call by argument. Points lie some pixels around their query.

    No point lies on the line between two pixels, where a rounded number may have the gradient of
    the other side.
    """
    shapes = spatial_shapes(case)
    tasks = shapes.count(shapes[0])
    queries = tasks * case.height * case.width
    value = make(case.batch, sum(h * w for h, w in shapes), case.heads, case.channels // case.heads)
    points = (case.batch, queries, case.heads, len(shapes), case.kernel_size)
    with torch.no_grad():
        weights = make(*points).detach().float().flatten(3).softmax(dim=3).view(points)
        locations = make(*points, 2).detach().float().mul_(32).floor_().add_(0.5).div_(8)
        y, x = (torch.arange(n, device=value.device) for n in (case.height, case.width))
        grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), dim=-1)
        centres = (grid + 0.5).flatten(0, 1).repeat(tasks, 1)[:, None, None, None]
        sizes = value.new_tensor(shapes, dtype=torch.float32).flip(1)[:, None]
        locations += centres / value.new_tensor([case.width, case.height]).float() * sizes
        locations /= sizes
    return dict(
        value=value,
        sampling_locations=locations.to(value.dtype).requires_grad_(value.requires_grad),
        attention_weights=weights.to(value.dtype).requires_grad_(value.requires_grad),
    )


def settings(case: Case) -> dict[str, Any]:
    """Return the other arguments of a call."""
    return dict(spatial_shapes=spatial_shapes(case), padding_mode="border")


def window_values(case: Case) -> int:
    """Return the number of values in the samples that ``reference`` writes out."""
    shapes = spatial_shapes(case)
    queries = shapes.count(shapes[0]) * case.height * case.width
    return 4 * case.batch * queries * case.channels * len(shapes) * case.kernel_size

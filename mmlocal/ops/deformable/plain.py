"""Deformable attention in operators that ONNX has: GridSample reads the points of a map.

It holds the samples of up to four points for each query, and a copy of the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.plain_common import computation_dtype

# Points of each query that are read together.
_POINTS = 4


def forward(
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: Sequence[int],
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention`."""
    dtype = computation_dtype(value)
    locations = sampling_locations.to(dtype).unbind(3)
    return _attend(value, locations, attention_weights.to(dtype), spatial_shapes, padding_mode)


def forward_from_offsets(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention_from_offsets`."""
    dtype = computation_dtype(value)
    points = reference_points.to(dtype)[:, :, None, :, None]
    offsets = sampling_offsets.to(dtype)
    locations = []
    for index, (height, width) in enumerate(_pairs(spatial_shapes)):
        centre, moved = points[:, :, :, index], offsets[:, :, :, index]
        sides = zip((width, height), centre.split(1, -1), moved.split(1, -1), strict=True)
        locations.append(torch.cat([start + step / side for side, start, step in sides], dim=-1))
    weights = attention_logits.to(dtype).flatten(3).softmax(dim=3)
    weights = weights.unflatten(3, attention_logits.shape[3:])
    return _attend(value, locations, weights, spatial_shapes, padding_mode)


def _pairs(spatial_shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))


def _attend(
    value: Tensor,
    locations: Sequence[Tensor],
    weights: Tensor,
    spatial_shapes: Sequence[int],
    padding_mode: str,
) -> Tensor:
    """Sum up the samples.

    Args:
        value: ``(B, S, heads, channels)``.
        locations: for each map, ``(B, Q, heads, points, 2)``, as shares of width and height.
        weights: ``(B, Q, heads, maps, points)``.
        spatial_shapes: heights and widths.
        padding_mode: ``"zeros"`` or ``"border"``, as in ``grid_sample``.

    Returns:
        ``(B, Q, heads * channels)``, dtype of ``value``.
    """
    batch, heads = value.shape[0], value.shape[2]
    planes = value.to(weights.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B * heads, channels, S)
    sizes = _pairs(spatial_shapes)
    total = None
    # One node splits all maps. Slices would begin at sums of sizes, which PyTorch takes long for.
    maps = planes.split([height * width for height, width in sizes], dim=2)
    for index, (plane, size) in enumerate(zip(maps, sizes, strict=True)):
        plane = plane.unflatten(2, size)
        # Beyond one map's width outside, nothing changes, and a whole number might overflow.
        grid = (2 * locations[index] - 1).clamp(-3, 3).transpose(1, 2).flatten(0, 1)
        weight = weights[:, :, :, index].transpose(1, 2).flatten(0, 1)[:, None]
        parts = zip(grid.split(_POINTS, 2), weight.split(_POINTS, 3), strict=True)
        for points, share in parts:
            samples = F.grid_sample(plane, points, padding_mode=padding_mode, align_corners=False)
            part = (samples * share).sum(dim=3)  # (B * heads, channels, Q)
            total = part if total is None else total + part
    assert total is not None  # there is a map
    total = total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)
    return total.to(value.dtype)

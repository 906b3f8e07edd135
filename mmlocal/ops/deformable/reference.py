"""Definition of deformable attention. It writes every sample out, so it takes much memory."""

from __future__ import annotations

import itertools
import typing

import torch
from torch import Tensor


def _sample(rows: Tensor, x: Tensor, y: Tensor, height: int, width: int, border: bool) -> Tensor:
    """Interpolate a map between its pixels.

    Args:
        rows: ``(B, height * width, heads, channels)``.
        x: columns, ``(B, Q, heads, points)``.
        y: rows, ``(B, Q, heads, points)``.
        height: rows of the map.
        width: columns of the map.
        border: whether the border pixels continue outside the map, instead of zeros.

    Returns:
        ``(B, Q, heads, points, channels)``. NaN where a coordinate is NaN.
    """
    missing = x.isnan() | y.isnan()
    # Two pixels outside, all corners are outside. A number beyond has no whole part as an int.
    x = x.masked_fill(missing, -2).clamp(-2, width + 1)
    y = y.masked_fill(missing, -2).clamp(-2, height + 1)
    left, top = x.detach().floor(), y.detach().floor()
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
    head = torch.arange(x.shape[2], device=x.device)[:, None]
    total = torch.zeros((), dtype=rows.dtype, device=rows.device)
    for i, j in itertools.product((0, 1), (0, 1)):
        row, col = top + i, left + j
        weight_y = y - top if i else 1 - (y - top)
        weight_x = x - left if j else 1 - (x - left)
        index = row.clamp(0, height - 1).long() * width + col.clamp(0, width - 1).long()
        corner = rows[batch, index, head]
        if not border:
            outside = (row < 0) | (row >= height) | (col < 0) | (col >= width)
            corner = corner.masked_fill(outside[..., None], 0)
        total = total + (weight_y * weight_x)[..., None] * corner
    return total.masked_fill(missing[..., None], torch.nan)


# The schema of an operator comes from its definition, and PyTorch 2.6 does not know list[int].
def forward(
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: typing.List[int],  # noqa: UP006
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention`.

    Autograd differentiates this function. ``spatial_shapes`` is one list of heights and widths, map
    by map.
    """
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    locations = sampling_locations.to(dtype)
    pixels = [
        (locations[:, :, :, m, :, 0] * width - 0.5, locations[:, :, :, m, :, 1] * height - 0.5)
        for m, (height, width) in enumerate(_pairs(spatial_shapes))
    ]
    return _attend(value, pixels, attention_weights.to(dtype), spatial_shapes, padding_mode)


def forward_from_offsets(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: typing.List[int],  # noqa: UP006
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention_from_offsets`.

    ``reference_points`` is ``(B, Q, maps, 2)``.
    """
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    points, offsets = reference_points.to(dtype), sampling_offsets.to(dtype)
    pixels = [
        (
            points[:, :, m, None, None, 0] * width - 0.5 + offsets[:, :, :, m, :, 0],
            points[:, :, m, None, None, 1] * height - 0.5 + offsets[:, :, :, m, :, 1],
        )
        for m, (height, width) in enumerate(_pairs(spatial_shapes))
    ]
    weights = attention_logits.to(dtype).flatten(3).softmax(dim=3)
    weights = weights.view(attention_logits.shape)
    return _attend(value, pixels, weights, spatial_shapes, padding_mode)


def _pairs(spatial_shapes: list[int]) -> list[tuple[int, int]]:
    return list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))


def _attend(
    value: Tensor,
    pixels: list[tuple[Tensor, Tensor]],
    weights: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
) -> Tensor:
    """Sum up the samples at ``pixels``, which has columns and rows for each map."""
    pairs = _pairs(spatial_shapes)
    maps = value.to(weights.dtype).split([height * width for height, width in pairs], dim=1)
    total = torch.zeros((), dtype=weights.dtype, device=value.device)
    for m, (rows, (x, y), size) in enumerate(zip(maps, pixels, pairs, strict=True)):
        samples = _sample(rows, x, y, *size, padding_mode == "border")
        total = total + (weights[:, :, :, m, :, None] * samples).sum(dim=3)
    return total.flatten(2).to(value.dtype)

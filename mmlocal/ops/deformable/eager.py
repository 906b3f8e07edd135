"""Deformable attention in plain PyTorch, a chunk of queries at a time.

In addition to inputs and outputs, it holds a copy of the values of one sample in the dtype of the
computation, their gradient, and temporary tensors of up to ``_CHUNK`` numbers each, whatever the
number of queries. Only the samples of one query cannot be divided further. On a GPU, PyTorch adds
up the gradient of the values in no fixed order, unless deterministic algorithms are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.cpp_common import computation_dtype
from mmlocal.ops.layout import new_map

# The most numbers of a temporary tensor, on a CPU and elsewhere.
_CHUNK = {"cpu": 2**20}
_LARGE_CHUNK = 2**26


@dataclass
class Corners:
    """The four pixels around the points of one map. All tensors are ``(q, heads, points, ...)``.

    Attributes:
        index: rows of the table, ``(..., 4)``. A corner that counts as zero has the last row.
        weight: bilinear weights, ``(..., 4)``.
        slopes: derivatives of ``weight`` by the column and by the row, each ``(..., 4)``.
        missing: ``(...)``, whether a coordinate is NaN.
        cut: ``(..., 2)``, whether a coordinate is too far away to matter, or NaN.
    """

    index: Tensor
    weight: Tensor
    slopes: tuple[Tensor, Tensor]
    missing: Tensor
    cut: Tensor


def chunks(value: Tensor, points: int, queries: int) -> list[slice]:
    """Return the queries to work on together."""
    limit = _CHUNK.get(value.device.type, _LARGE_CHUNK)
    size = max(1, limit // (4 * points * value.shape[2] * value.shape[3]))
    return [slice(first, first + size) for first in range(0, queries, size)]


def to_table(values: Tensor) -> Tensor:
    """Return one sample ``(S, heads, channels)`` as ``(S * heads + 1, channels)``, last row 0."""
    return F.pad(values.to(computation_dtype(values)).flatten(0, 1), (0, 0, 0, 1))


def sizes_of(spatial_shapes: list[int], like: Tensor) -> Tensor:
    """Return the width and the height of each map, ``(maps, 1, 2)``."""
    sizes = torch.tensor(spatial_shapes, dtype=like.dtype, device=like.device)
    return sizes.view(-1, 1, 2).flip(2)


def _corners(
    pixels: Tensor, size: tuple[int, int], first: int, empty: int, border: bool
) -> Corners:
    """Find the corners of ``pixels``, ``(q, heads, points, 2)``.

    Args:
        pixels: columns and rows.
        size: height and width of the map.
        first: row of the table where the map begins.
        empty: row of the table that is zero.
        border: whether the border pixels continue outside the map.
    """
    height, width = size
    missing = pixels.isnan().any(dim=-1)
    # Two pixels outside, all corners are outside.
    near = pixels.masked_fill(missing[..., None], -2).clamp(min=-2)
    near = near.minimum(near.new_tensor([width + 1, height + 1]))
    start = near.floor()
    right, low = (near - start).unbind(dim=-1)
    left, top = start.long().unbind(dim=-1)
    cols = torch.stack((left, left + 1, left, left + 1), dim=-1)
    rows = torch.stack((top, top, top + 1, top + 1), dim=-1)
    outside = missing[..., None]
    if not border:
        outside = outside | (rows < 0) | (rows >= height) | (cols < 0) | (cols >= width)
    heads = pixels.shape[1]
    head = torch.arange(heads, device=pixels.device)[:, None, None]
    index = rows.clamp(0, height - 1) * width + cols.clamp(0, width - 1)
    index = ((first + index) * heads + head).masked_fill(outside, empty)
    along_x = torch.stack((1 - right, right, 1 - right, right), dim=-1)
    along_y = torch.stack((1 - low, 1 - low, low, low), dim=-1)
    slopes = (
        along_y * along_y.new_tensor([-1, 1, -1, 1]),
        along_x * along_x.new_tensor([-1, -1, 1, 1]),
    )
    return Corners(index, along_x * along_y, slopes, missing, near != pixels)


def _maps(
    pixels: Tensor, spatial_shapes: list[int], empty: int, border: bool
) -> Iterator[tuple[int, Corners]]:
    """Go through the maps. ``pixels`` is ``(q, heads, maps, points, 2)``."""
    first = 0
    for m, size in enumerate(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True)):
        yield m, _corners(pixels[:, :, m], size, first, empty, border)
        first += size[0] * size[1]


def attend(
    table: Tensor, pixels: Tensor, weights: Tensor, spatial_shapes: list[int], border: bool
) -> Tensor:
    """Return the output of some queries, ``(q, heads * channels)``.

    Args:
        table: result of :func:`to_table`.
        pixels: columns and rows, ``(q, heads, maps, points, 2)``.
        weights: ``(q, heads, maps, points)``.
        spatial_shapes: heights and widths.
        border: whether the border pixels continue outside the map.
    """
    queries, heads = pixels.shape[:2]
    out = table.new_zeros(queries * heads, table.shape[1])
    for m, corners in _maps(pixels, spatial_shapes, len(table) - 1, border):
        weight = weights[:, :, m].masked_fill(corners.missing, torch.nan)[..., None]
        index, factor = (
            x.flatten(2).flatten(0, 1) for x in (corners.index, weight * corners.weight)
        )
        # This sums up weighted rows without writing them.
        out += F.embedding_bag(index, table, mode="sum", per_sample_weights=factor)
    return out.view(queries, -1)


def attend_backward(
    grad: Tensor,
    table: Tensor,
    pixels: Tensor,
    weights: Tensor,
    spatial_shapes: list[int],
    border: bool,
    grad_table: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``pixels`` and ``weights``, and add to the gradient of ``table``.

    Args:
        grad: gradient of the result of :func:`attend`.
        table: as in :func:`attend`.
        pixels: as in :func:`attend`.
        weights: as in :func:`attend`.
        spatial_shapes: as in :func:`attend`.
        border: as in :func:`attend`.
        grad_table: gradient of ``table`` so far, or ``None`` if it is not needed.
    """
    queries, heads = pixels.shape[:2]
    grad = grad.to(table.dtype).reshape(queries, heads, 1, 1, -1)
    grad_pixels, grad_weights = torch.empty_like(pixels), torch.empty_like(weights)
    for m, corners in _maps(pixels, spatial_shapes, len(table) - 1, border):
        weight, index = weights[:, :, m], corners.index.flatten()
        if grad_table is not None:
            factor = weight[..., None] * corners.weight
            grad_table.index_add_(0, index, (factor[..., None] * grad).flatten(0, 3))
        rows = table.index_select(0, index).view(*corners.index.shape, -1)
        dots = rows.mul_(grad).sum(dim=-1)
        grad_weight = (dots * corners.weight).sum(dim=-1)
        grad_weights[:, :, m] = grad_weight.masked_fill(corners.missing, torch.nan)
        for axis, slope in enumerate(corners.slopes):
            moved = weight * (dots * slope).sum(dim=-1)
            grad_pixels[:, :, m, :, axis] = moved.masked_fill(corners.cut[..., axis], 0)
    return grad_pixels, grad_weights


def forward(
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention`."""
    batch, queries, *_, points = attention_weights.shape
    out = value.new_empty(batch, queries, value.shape[2] * value.shape[3])
    for b in range(batch):
        table = to_table(value[b])
        sizes = sizes_of(spatial_shapes, table)
        for chunk in chunks(value, points, queries):
            pixels = sampling_locations[b, chunk].to(table.dtype) * sizes - 0.5
            weights = attention_weights[b, chunk].to(table.dtype)
            out[b, chunk] = attend(table, pixels, weights, spatial_shapes, padding_mode == "border")
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``value, sampling_locations, attention_weights``, ``None`` where not needed."""
    batch, queries, *_, points = attention_weights.shape
    grads = [
        new_map(value, value.shape) if needs_grad[0] else None,
        sampling_locations.new_empty(sampling_locations.shape) if needs_grad[1] else None,
        attention_weights.new_empty(attention_weights.shape) if needs_grad[2] else None,
    ]
    grad_value, grad_locations, grad_weights = grads
    for b in range(batch):
        table = to_table(value[b])
        sizes = sizes_of(spatial_shapes, table)
        grad_table = torch.zeros_like(table) if grad_value is not None else None
        for chunk in chunks(value, points, queries):
            pixels = sampling_locations[b, chunk].to(table.dtype) * sizes - 0.5
            weights = attention_weights[b, chunk].to(table.dtype)
            grad_pixels, own = attend_backward(
                grad[b, chunk],
                table,
                pixels,
                weights,
                spatial_shapes,
                padding_mode == "border",
                grad_table,
            )
            if grad_locations is not None:
                grad_locations[b, chunk] = grad_pixels * sizes
            if grad_weights is not None:
                grad_weights[b, chunk] = own
        if grad_value is not None and grad_table is not None:
            grad_value[b] = grad_table[:-1].view(value.shape[1:])
    return grad_value, grad_locations, grad_weights

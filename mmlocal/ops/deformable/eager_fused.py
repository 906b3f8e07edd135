"""Deformable attention from offsets and logits in plain PyTorch, by the functions of ``eager``.

Beside what ``eager`` holds, there are the positions and the softmax of a chunk of queries only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlocal.ops.deformable.eager import attend, attend_backward, chunks, sizes_of, to_table
from mmlocal.ops.layout import new_map


def _positions(
    points: Tensor, offsets: Tensor, logits: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the columns and rows, and the weights, of a chunk of queries.

    Args:
        points: reference points, ``(q, maps, 2)``.
        offsets: ``(q, heads, maps, points, 2)``.
        logits: ``(q, heads, maps, points)``.
        sizes: width and height of each map, ``(maps, 1, 2)``.
    """
    centres = points.to(sizes.dtype)[:, None, :, None] * sizes - 0.5
    weights = logits.to(sizes.dtype).flatten(2).softmax(dim=2).view(logits.shape)
    return centres + offsets.to(sizes.dtype), weights


def forward(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention_from_offsets`."""
    batch, queries, *_, points = attention_logits.shape
    out = value.new_empty(batch, queries, value.shape[2] * value.shape[3])
    for b in range(batch):
        table = to_table(value[b])
        sizes = sizes_of(spatial_shapes, table)
        for chunk in chunks(value, points, queries):
            pixels, weights = _positions(
                reference_points[b, chunk],
                sampling_offsets[b, chunk],
                attention_logits[b, chunk],
                sizes,
            )
            out[b, chunk] = attend(table, pixels, weights, spatial_shapes, padding_mode == "border")
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
    needs_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of the four tensors, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    batch, queries, *_, points = attention_logits.shape
    grad_value, grad_points, grad_offsets, grad_logits = (
        None if not need else new_map(x, x.shape) if x.dim() == 4 else x.new_empty(x.shape)
        for x, need in zip(
            (value, reference_points, sampling_offsets, attention_logits), needs_grad, strict=True
        )
    )
    for b in range(batch):
        table = to_table(value[b])
        sizes = sizes_of(spatial_shapes, table)
        grad_table = torch.zeros_like(table) if grad_value is not None else None
        for chunk in chunks(value, points, queries):
            pixels, weights = _positions(
                reference_points[b, chunk],
                sampling_offsets[b, chunk],
                attention_logits[b, chunk],
                sizes,
            )
            grad_pixels, grad_weights = attend_backward(
                grad[b, chunk],
                table,
                pixels,
                weights,
                spatial_shapes,
                padding_mode == "border",
                grad_table,
            )
            if grad_points is not None:
                grad_points[b, chunk] = grad_pixels.sum(dim=(1, 3)) * sizes[:, 0]
            if grad_offsets is not None:
                grad_offsets[b, chunk] = grad_pixels
            if grad_logits is not None:
                # d softmax: w * (dw - <w, dw>)
                mean = (weights * grad_weights).sum(dim=(2, 3), keepdim=True)
                grad_logits[b, chunk] = weights * (grad_weights - mean)
        if grad_value is not None and grad_table is not None:
            grad_value[b] = grad_table[:-1].view(value.shape[1:])
    return grad_value, grad_points, grad_offsets, grad_logits

"""The outlook op in plain PyTorch, one pair of target and source at a time.

In addition to inputs and outputs, it holds the softmax and one temporary map of a number for each
window and channel, whatever the kernel size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmlocal.ops.eager_common import chunks
from mmlocal.ops.layout import to_layout


def _split(
    value: Tensor, attn: Tensor, num_heads: int, kernel_size: int, softmax: bool
) -> tuple[Tensor, Tensor]:
    """Split the heads and taps of both tensors, in the dtype of the computation.

    Returns:
        ``value`` as ``(B, heads, C / heads, H, W)``, and the attention as
        ``(B, heads, targets, sources, rows, columns)``.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    # The loop over taps reads whole rows, so W has to be the innermost dimension in memory.
    heads = (num_heads, value.shape[1] // num_heads)
    value = value.to(dtype).contiguous().unflatten(1, heads)
    attn = attn.to(dtype).contiguous()
    attn = attn.unflatten(1, (num_heads, kernel_size**2, kernel_size**2))
    return value, attn.softmax(dim=3) if softmax else attn


def _pairs_along(
    pixels: int, windows: int, kernel_size: int, stride: int, padding: int
) -> Iterator[tuple[int, int, slice, slice, slice]]:
    """Go through the targets and sources along one side of the map.

    Returns:
        The index of the target, the index of the source, the windows that have both of them in the
        map, the pixels of the target, and the pixels of the source.
    """
    for target in range(kernel_size):
        for source in range(kernel_size):
            low, high = sorted((target - padding, source - padding))
            first, last = max(0, -(low // stride)), min(windows - 1, (pixels - 1 - high) // stride)
            if first <= last:
                start, stop = first * stride - padding, last * stride - padding + 1
                pixel = [slice(start + tap, stop + tap, stride) for tap in (target, source)]
                yield target, source, slice(first, last + 1), pixel[0], pixel[1]


def _pairs(
    value: Tensor, attn: Tensor, kernel_size: int, stride: int, padding: int
) -> Iterator[tuple[int, int, tuple, tuple, tuple]]:
    """Go through all targets and sources, as :func:`_pairs_along`, with indices of tensors."""
    settings = (kernel_size, stride, padding)
    for t_row, s_row, *rows in _pairs_along(value.shape[-2], attn.shape[-2], *settings):
        for t_col, s_col, *cols in _pairs_along(value.shape[-1], attn.shape[-1], *settings):
            own, target, source = ((..., y, x) for y, x in zip(rows, cols, strict=True))
            t, s = t_row * kernel_size + t_col, s_row * kernel_size + s_col
            yield t, s, own, target, source


def forward(
    value: Tensor,
    attn: Tensor,
    num_heads: int,
    kernel_size: int,
    stride: int,
    padding: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.outlook.outlook_attention`."""
    v, weights = _split(value, attn, num_heads, kernel_size, softmax)
    out = torch.zeros_like(v)
    for chunk in chunks(v):
        for t, s, own, target, source in _pairs(v, weights, kernel_size, stride, padding):
            weight = weights[chunk, :, t, s, None][own]
            out[chunk][target].addcmul_(v[chunk][source], weight)
    return to_layout(out.view(value.shape), value)


def backward(
    grad: Tensor,
    value: Tensor,
    attn: Tensor,
    num_heads: int,
    kernel_size: int,
    stride: int,
    padding: int,
    softmax: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``value, attn``, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    need_value, need_attn = needs_grad
    v, weights = _split(value, attn, num_heads, kernel_size, softmax)
    g = grad.to(v.dtype).contiguous().view(v.shape)
    grad_value = torch.zeros_like(v) if need_value else None
    grad_weights = torch.zeros_like(weights) if need_attn else None
    for chunk in chunks(v):
        for t, s, own, target, source in _pairs(v, weights, kernel_size, stride, padding):
            own_g = g[chunk][target]
            if grad_value is not None:
                weight = weights[chunk, :, t, s, None][own]
                grad_value[chunk][source].addcmul_(own_g, weight)
            if grad_weights is not None:
                product = own_g * v[chunk][source]
                torch.sum(product, dim=2, out=grad_weights[chunk, :, t, s][own])
    if grad_weights is not None and softmax:
        # d softmax: w * (dw - <w, dw>)
        grad_weights -= (grad_weights * weights).sum(dim=3, keepdim=True)
        grad_weights *= weights

    def to_map(grads: Tensor | None, like: Tensor) -> Tensor | None:
        return None if grads is None else to_layout(grads.view(like.shape), like)

    return to_map(grad_value, value), to_map(grad_weights, attn)

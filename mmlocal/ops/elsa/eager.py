"""The ELSA op in plain PyTorch, tap by tap: no window is ever stored.

In addition to inputs and outputs, it holds the softmax and one temporary map, whatever the kernel
size. The additive ghost head does not depend on the pixel, so its part of the sum is a depth-wise
convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from mmlocal.ops.eager_common import chunks, taps_inside
from mmlocal.ops.layout import to_layout


def _taps(kernel_size: int, dilation: int, size: torch.Size) -> list[tuple]:
    return taps_inside(kernel_size, 1, kernel_size // 2 * dilation, dilation, size, size)


def _split(
    value: Tensor, attn: Tensor, ghost_mul: Tensor | None, kernel_size: int, softmax: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Split the heads and taps of all tensors, in the dtype of the computation.

    Returns:
        ``value`` as ``(B, heads, C / heads, H, W)``, the attention as ``(B, heads, taps, H, W)``,
        and ``ghost_mul`` as ``(taps, heads, C / heads, 1, 1)``.
    """
    batch, channels, height, width = value.shape
    taps = kernel_size**2
    heads = attn.shape[1] // taps
    dtype = torch.promote_types(value.dtype, torch.float32)
    # The loop over taps reads whole rows, so W has to be the innermost dimension in memory.
    value = value.to(dtype).contiguous().view(batch, heads, channels // heads, height, width)
    attn = attn.to(dtype).contiguous().view(batch, heads, taps, height, width)
    if softmax:
        attn = attn.softmax(dim=2)
    return value, attn, _table(ghost_mul, value)


def _table(ghost: Tensor | None, value: Tensor) -> Tensor | None:
    if ghost is None:
        return None
    ghost = ghost.to(value.dtype).reshape(*value.shape[1:3], -1, 1, 1)
    return ghost.permute(2, 0, 1, 3, 4)


class _Convolution:
    """The additive ghost head as a convolution, without taps that no pixel has in the map."""

    def __init__(self, ghost_add: Tensor, shape: torch.Size, dtype: torch.dtype, dilation: int):
        size = ghost_add.shape[-1]
        reach = [min(size // 2, (n - 1) // dilation) for n in shape[2:]]
        self.inner: tuple = (..., *(slice(size // 2 - r, size // 2 + r + 1) for r in reach))
        self.weight = ghost_add.to(dtype)[self.inner].unsqueeze(1)
        self.options: dict[str, Any] = dict(
            padding=[r * dilation for r in reach], dilation=dilation, groups=shape[1]
        )
        # Some libraries multiply the weight with the zeros around the map, and some do not.
        self.is_finite = _is_finite(self.weight)


def _is_finite(x: Tensor) -> bool:
    # On another device, the question would make the program wait.
    return x.device.type != "cpu" or bool(x.isfinite().all())


def forward(
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.elsa.elsa_attention`."""
    shape = value.shape
    v, weights, mul = _split(value, attn, ghost_mul, kernel_size, softmax)
    add = conv = None
    if ghost_add is not None:
        conv = _Convolution(ghost_add, shape, v.dtype, dilation)
        if not conv.is_finite:
            add, conv = _table(ghost_add, v), None

    out = torch.zeros_like(v)
    taps = _taps(kernel_size, dilation, shape[2:])
    for chunk in chunks(v):
        for tap, own, other in taps:
            neighbour, weight = v[chunk][other], weights[chunk, :, tap, None][own]
            if add is not None:
                weight = (weight if mul is None else weight * mul[tap]) + add[tap]
            elif mul is not None:
                neighbour = neighbour * mul[tap]
            out[chunk][own].addcmul_(neighbour, weight)
    out = out.view(shape)
    if conv is not None:
        out += F.conv2d(value.to(v.dtype), conv.weight, **conv.options)
    return to_layout(out, value)


def backward(
    grad: Tensor,
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    softmax: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``value, attn, ghost_mul, ghost_add``, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    shape = value.shape
    need_value, need_attn, need_mul, need_add = needs_grad
    v, weights, mul = _split(value, attn, ghost_mul, kernel_size, softmax)
    g = grad.to(v.dtype).contiguous().view(v.shape)
    add = conv = grad_add = None
    if ghost_add is not None and (need_value or need_add):
        conv = _Convolution(ghost_add, shape, v.dtype, dilation)
        add = None if conv.is_finite else _table(ghost_add, v)
        # Depth-wise convolutions are fastest channels last.
        pixels = g.view(shape).contiguous(memory_format=torch.channels_last)
    if need_add and ghost_add is not None and conv is not None:
        v_pixels = value.to(v.dtype).contiguous(memory_format=torch.channels_last)
        inner = conv2d_weight(v_pixels, conv.weight.shape, pixels, **conv.options)
        if _is_finite(inner):
            grad_add = torch.zeros_like(ghost_add, dtype=v.dtype)
            grad_add[conv.inner] = inner[:, 0]

    grad_value = torch.zeros_like(v) if need_value else None
    grad_weights = torch.zeros_like(weights) if need_attn else None
    grad_mul = torch.zeros_like(mul) if need_mul and mul is not None else None
    add_sums = v.new_zeros(kernel_size**2, *v.shape[1:3]) if need_add and grad_add is None else None
    taps = _taps(kernel_size, dilation, shape[2:])
    for chunk in chunks(v):
        product = torch.empty_like(g[chunk])
        for tap, own, other in taps:
            weight, own_g = weights[chunk, :, tap, None][own], g[chunk][own]
            own_product = product[own]
            if grad_value is not None:
                scaled = own_g if mul is None else torch.mul(own_g, mul[tap], out=own_product)
                if add is not None:
                    factor = (weight if mul is None else weight * mul[tap]) + add[tap]
                    grad_value[chunk][other].addcmul_(own_g, factor)
                else:
                    grad_value[chunk][other].addcmul_(scaled, weight)
            if need_attn or need_mul or add_sums is not None:
                torch.mul(own_g, v[chunk][other], out=own_product)
                if add_sums is not None:
                    add_sums[tap] += own_product.sum(dim=(0, 3, 4))
                if grad_mul is not None:
                    grad_mul[tap] += (own_product * weight).sum(dim=(0, 3, 4))[..., None, None]
                if grad_weights is not None:
                    if mul is not None:
                        own_product *= mul[tap]
                    torch.sum(own_product, dim=2, out=grad_weights[chunk, :, tap][own])
    if grad_weights is not None and softmax:
        # d softmax: w * (dw - <w, dw>)
        grad_weights -= (grad_weights * weights).sum(dim=2, keepdim=True)
        grad_weights *= weights

    if grad_value is not None:
        grad_value = grad_value.view(shape)
        if conv is not None and add is None:
            grad_value += conv2d_input(shape, conv.weight, pixels, **conv.options)
    if grad_mul is not None:
        grad_mul = grad_mul.permute(1, 2, 0, 3, 4)
    if add_sums is not None:
        grad_add = add_sums.permute(1, 2, 0)

    def to_map(grads: Tensor | None, like: Tensor) -> Tensor | None:
        return None if grads is None else to_layout(grads.view(like.shape), like)

    def to_table(grads: Tensor | None, ghost: Tensor | None) -> Tensor | None:
        if grads is None or ghost is None:
            return None
        return grads.reshape(ghost.shape).to(ghost.dtype)

    return (
        to_map(grad_value, value),
        to_map(grad_weights, attn),
        to_table(grad_mul, ghost_mul),
        to_table(grad_add, ghost_add),
    )

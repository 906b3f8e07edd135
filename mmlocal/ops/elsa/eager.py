"""The ELSA op in plain PyTorch, tap by tap: no window is ever stored.

Beside its inputs and outputs it holds the zero-padded value, the softmax and one temporary map,
whatever the kernel size. The additive ghost head does not depend on the pixel, so its part of the
sum is a depth-wise convolution.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from mmlocal.ops.layout import to_layout

# Elements of a temporary map that stay in the cache of one CPU core.
_CPU_CHUNK = 2**17


def _taps(kernel_size: int, dilation: int, height: int, width: int) -> Iterator[tuple]:
    """For each tap in row-major order, where its neighbours lie in the padded map."""
    for row in range(kernel_size):
        for col in range(kernel_size):
            y, x = row * dilation, col * dilation
            yield (..., slice(y, y + height), slice(x, x + width))


def _split(
    value: Tensor, attn: Tensor, ghost_mul: Tensor | None, kernel_size: int, softmax: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring value to (B, heads, C/heads, H, W), attn to (B, heads, taps, H, W) and the
    multiplicative ghost head to (taps, heads, C/heads, 1, 1), in the dtype of the computation."""
    batch, channels, height, width = value.shape
    taps = kernel_size**2
    heads = attn.shape[1] // taps
    dtype = torch.promote_types(value.dtype, torch.float32)
    # The loop over taps reads whole rows, so W has to be the innermost dimension in memory.
    value = value.to(dtype).contiguous().view(batch, heads, channels // heads, height, width)
    attn = attn.to(dtype).contiguous().view(batch, heads, taps, height, width)
    if softmax:
        attn = attn.softmax(dim=2)
    if ghost_mul is not None:
        ghost_mul = ghost_mul.to(dtype).reshape(heads, channels // heads, taps, 1, 1)
        ghost_mul = ghost_mul.permute(2, 0, 1, 3, 4)
    return value, attn, ghost_mul


def _chunks(value: Tensor) -> list[slice]:
    """Samples to work on together: on a CPU, as many as leave the temporary map in its cache."""
    batch = value.shape[0]
    size = batch
    if value.device.type == "cpu":
        size = max(1, _CPU_CHUNK // max(1, value[:1].numel()))
    return [slice(i, i + size) for i in range(0, batch, max(1, size))]


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
    shape, dtype = value.shape, value.dtype
    pad = kernel_size // 2 * dilation
    v, attn, mul = _split(value, attn, ghost_mul, kernel_size, softmax)
    padded = F.pad(v, (pad, pad, pad, pad))

    out = torch.zeros_like(v)
    for chunk in _chunks(v):
        for tap, window in enumerate(_taps(kernel_size, dilation, *shape[2:])):
            neighbour = padded[chunk][window]
            if mul is not None:
                neighbour = neighbour * mul[tap]
            out[chunk].addcmul_(neighbour, attn[chunk, :, tap, None])
    out = out.view(shape)
    if ghost_add is not None:
        weight = ghost_add.to(v.dtype).unsqueeze(1)
        out += F.conv2d(value.to(v.dtype), weight, padding=pad, dilation=dilation, groups=shape[1])
    return to_layout(out.to(dtype), value)


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

    The softmax is computed again rather than kept since the forward pass.
    """
    shape = value.shape
    need_value, need_attn, need_mul, need_add = needs_grad
    pad = kernel_size // 2 * dilation
    v, weights, mul = _split(value, attn, ghost_mul, kernel_size, softmax)
    g = grad.to(v.dtype).contiguous().view(v.shape)
    padded = F.pad(v, (pad, pad, pad, pad))

    grad_padded = torch.zeros_like(padded) if need_value else None
    grad_weights = torch.empty_like(weights) if need_attn else None
    grad_mul = torch.zeros_like(mul) if need_mul else None
    for chunk in _chunks(v):
        product = torch.empty_like(g[chunk])
        for tap, window in enumerate(_taps(kernel_size, dilation, *shape[2:])):
            weight = weights[chunk, :, tap, None]
            if need_value:
                scaled = g[chunk] if mul is None else torch.mul(g[chunk], mul[tap], out=product)
                grad_padded[chunk][window].addcmul_(scaled, weight)
            if need_attn or need_mul:
                torch.mul(g[chunk], padded[chunk][window], out=product)
                if need_mul:
                    grad_mul[tap] += (product * weight).sum(dim=(0, 3, 4))[..., None, None]
                if need_attn:
                    if mul is not None:
                        product *= mul[tap]
                    torch.sum(product, dim=2, out=grad_weights[chunk, :, tap])
    if need_attn and softmax:
        # d softmax: w * (dw - <w, dw>)
        grad_weights -= (grad_weights * weights).sum(dim=2, keepdim=True)
        grad_weights *= weights

    grad_value = grad_add = None
    if need_value:
        inner = (..., slice(pad, pad + shape[2]), slice(pad, pad + shape[3]))
        grad_value = grad_padded[inner].contiguous().view(shape)
    if ghost_add is not None and (need_value or need_add):
        conv = dict(padding=pad, dilation=dilation, groups=shape[1])
        weight = ghost_add.to(v.dtype).unsqueeze(1)
        # Depth-wise convolutions are fastest channels last.
        g = g.view(shape).contiguous(memory_format=torch.channels_last)
        if need_value:
            grad_value += conv2d_input(shape, weight, g, **conv)
        if need_add:
            v = value.to(v.dtype).contiguous(memory_format=torch.channels_last)
            grad_add = conv2d_weight(v, weight.shape, g, **conv)
            grad_add = grad_add.view(ghost_add.shape).to(ghost_add.dtype)
    if need_mul:
        grad_mul = grad_mul.permute(1, 2, 0, 3, 4).reshape(ghost_mul.shape).to(ghost_mul.dtype)
    return (
        to_layout(grad_value.to(value.dtype), value) if need_value else None,
        to_layout(grad_weights.view(attn.shape).to(attn.dtype), attn) if need_attn else None,
        grad_mul,
        grad_add,
    )

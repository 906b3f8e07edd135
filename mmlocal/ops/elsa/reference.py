"""Definition of the ELSA op. It writes every window out, so it is slow and takes much memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.elsa.elsa_attention`. Autograd differentiates this function."""
    batch, channels, height, width = value.shape
    taps = kernel_size**2
    heads = attn.shape[1] // taps
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32

    def unfold(x: Tensor) -> Tensor:
        return F.unfold(x, kernel_size, dilation=dilation, padding=kernel_size // 2 * dilation)

    attn = attn.to(dtype).reshape(batch, heads, 1, taps, height * width)
    if softmax:
        attn = attn.softmax(dim=3)
    # A tap outside the map adds nothing and gets no gradient, even from infinity or NaN.
    outside = unfold(torch.ones_like(value[:1, :1], dtype=dtype)) == 0
    outside = outside.reshape(-1, 1, 1, taps, height * width)
    filters = attn.masked_fill(outside, 0.0)
    if ghost_mul is not None:
        filters = filters * ghost_mul.to(dtype).reshape(1, heads, channels // heads, taps, 1)
    if ghost_add is not None:
        filters = filters + ghost_add.to(dtype).reshape(1, heads, channels // heads, taps, 1)
    filters = filters.masked_fill(outside, 0.0)

    windows = unfold(value.to(dtype))
    windows = windows.reshape(batch, heads, channels // heads, taps, height * width)
    return (filters * windows).sum(dim=3).reshape(value.shape).to(value.dtype)


def forward_projected(
    value: Tensor,
    features: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    """See :func:`mmlocal.ops.elsa.elsa_attention_projected`. Autograd differentiates it."""
    attn = F.conv2d(features, proj_weight[:, :, None, None], proj_bias)
    return forward(value, attn, ghost_mul, ghost_add, kernel_size, dilation, True)

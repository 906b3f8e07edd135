"""Definition of the outlook op. It writes every window out, so it is slow and takes much memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def output_size(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Return the number of windows along a side of ``size`` pixels."""
    return (size + 2 * padding - kernel_size) // stride + 1


def forward(
    value: Tensor,
    attn: Tensor,
    num_heads: int,
    kernel_size: int,
    stride: int,
    padding: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.outlook.outlook_attention`. Autograd differentiates this function."""
    batch, channels, height, width = value.shape
    taps, count = kernel_size**2, attn.shape[2] * attn.shape[3]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    settings: dict[str, Any] = dict(kernel_size=kernel_size, padding=padding, stride=stride)

    def unfold(x: Tensor) -> Tensor:
        return F.unfold(x, **settings)

    # A target or a source outside the map gets no gradient, even from infinity or NaN.
    outside = unfold(torch.ones(1, 1, height, width, dtype=dtype, device=value.device))[0] == 0
    weights = attn.to(dtype).reshape(batch, num_heads, taps, taps, count)
    if softmax:
        weights = weights.softmax(dim=3)
    weights = weights.masked_fill(outside[:, None] | outside, 0.0)

    windows = unfold(value.to(dtype))
    windows = windows.reshape(batch, num_heads, channels // num_heads, taps, count)
    # Under autocast, einsum would multiply in bfloat16.
    targets = [(weights[:, :, None, t] * windows).sum(dim=3) for t in range(taps)]
    out = torch.stack(targets, dim=3).reshape(batch, channels * taps, count)
    return F.fold(out, (height, width), **settings).to(value.dtype)

"""Definition of the op. It writes every window out, so it is slow and takes much memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int, masked: bool
) -> Tensor:
    """See :func:`mmlocal.ops.neighborhood.neighborhood_scores`. Autograd differentiates it."""
    batch, channels, height, width = query.shape
    taps = kernel_size**2
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32

    def unfold(x: Tensor) -> Tensor:
        return F.unfold(x, kernel_size, dilation=dilation, padding=kernel_size // 2 * dilation)

    windows = unfold(key.to(dtype))
    windows = windows.reshape(batch, num_heads, channels // num_heads, taps, height * width)
    own = query.to(dtype).reshape(batch, num_heads, channels // num_heads, 1, height * width)
    # A tap outside the map has no gradient, even from infinity or NaN.
    outside = unfold(torch.ones_like(query[:1, :1], dtype=dtype)) == 0
    scores = (own * windows).sum(dim=2)
    scores = scores.masked_fill(outside[:, None], -torch.inf if masked else 0.0)
    return scores.reshape(batch, num_heads * taps, height, width).to(query.dtype)

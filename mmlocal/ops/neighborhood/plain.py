"""The op in operators that ONNX has, tap by tap: no window is ever stored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.plain_common import computation_dtype, pad_sides, taps_of


def forward(
    query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int, masked: bool
) -> Tensor:
    """See :func:`mmlocal.ops.neighborhood.neighborhood_scores`."""
    taps, reach = kernel_size**2, kernel_size // 2 * dilation
    dtype = computation_dtype(query)
    own = query.to(dtype).unflatten(1, (num_heads, -1))
    padded = pad_sides(key.to(dtype), reach).unflatten(1, (num_heads, -1))
    neighbours = taps_of(padded, kernel_size, dilation=dilation)
    scores = torch.cat([(own * tap).sum(dim=2, keepdim=True) for tap in neighbours], dim=2)
    if masked:
        # One kernel for each tap, which picks it.
        pick = torch.eye(taps, dtype=dtype, device=query.device)
        pick = pick.reshape(taps, 1, kernel_size, kernel_size)
        inside = torch.ones_like(query[:1, :1], dtype=dtype)
        inside = F.conv2d(inside, pick, padding=reach, dilation=dilation)
        scores = scores.masked_fill(inside[:, None] == 0, float("-inf"))
    return scores.flatten(1, 2).to(query.dtype)

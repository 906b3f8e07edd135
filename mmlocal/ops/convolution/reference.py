"""Definition of the grouped convolution. It writes every window out, so it takes much memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Channels of a group. The C++ kernels are written for it.
GROUP_WIDTH = 4


def output_shape(x: Tensor, weight: Tensor, padding: int, dilation: int) -> tuple[int, ...]:
    """Return the shape of the output."""
    reach = (weight.shape[2] - 1) * dilation
    sides = (side + 2 * padding - reach for side in x.shape[2:])
    return (x.shape[0], weight.shape[0], *sides)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int, groups: int
) -> Tensor:
    """See :func:`mmlocal.ops.convolution.grouped_conv2d`. Autograd differentiates this function."""
    shape = output_shape(x, weight, padding, dilation)
    width, kernel_size = weight.shape[1:3]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32

    def windows(pixels: Tensor) -> Tensor:
        taps = F.unfold(pixels, kernel_size, dilation, padding)
        return taps.reshape(len(pixels), groups, 1, width, kernel_size**2, taps.shape[2])

    # A tap outside the map adds nothing, even if its weight is infinity or NaN.
    outside = windows(torch.ones(1, *x.shape[1:], dtype=dtype, device=x.device)) == 0
    weights = weight.to(dtype).reshape(1, groups, shape[1] // groups, width, kernel_size**2, 1)
    weights = weights.masked_fill(outside, 0.0)
    out = (weights * windows(x.to(dtype))).sum(dim=(3, 4)).reshape(shape)
    if bias is not None:
        out = out + bias.to(dtype)[:, None, None]
    return out.to(x.dtype)

"""The outlook op in operators that ONNX has: no unfold, and pads and sums in place of a fold.

It holds the taps of all windows three times, which are ``(kernel_size / stride)**2`` numbers for
each number of the map. In VOLO, this is 2.25.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.plain_common import computation_dtype, entries, pad_windows, taps_of


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
    height, width = value.shape[2:]
    taps = kernel_size**2
    dtype = computation_dtype(value)
    weights = attn.to(dtype).unflatten(1, (num_heads, taps, taps))
    if softmax:
        weights = weights.softmax(dim=3)
    channels = value.shape[1] // num_heads
    size = attn.shape[2:]
    padded = pad_windows(value.to(dtype), kernel_size, size, stride=stride, padding=padding)
    padded = padded.unflatten(1, (num_heads, channels, 1))
    # (B, heads, C / heads, sources, rows, columns)
    sources = torch.cat(list(taps_of(padded, kernel_size, stride=stride)), dim=3)
    targets = [(sources * weight).sum(dim=3) for weight in entries(weights, 2)]
    out = _overlap(targets, kernel_size, stride, padding)
    # A slice would have an unknown size, where PyTorch cannot tell whether it reaches the end.
    below, right = height + padding - out.shape[-2], width + padding - out.shape[-1]
    out = F.pad(out, (-padding, right, -padding, below))
    return out.flatten(1, 2).to(value.dtype)


def _overlap(targets: list[Tensor], kernel_size: int, stride: int, padding: int) -> Tensor:
    """Add up the windows where they overlap, as :func:`torch.nn.functional.fold` does.

    Args:
        targets: one tap of all windows, ``(B, heads, C / heads, rows, columns)``, for each tap.
        kernel_size: side of a window.
        stride: step between windows.
        padding: pixels by which the first window begins outside the map.

    Returns:
        ``(B, heads, C / heads, H, W)``, which begins in the corner of the first window, and ends at
        the end of the map or beyond.
    """
    # Pixels with the same remainder by the stride get the same taps. They make a map of their own,
    # in which a tap is a map of windows, moved by whole steps.
    steps = (kernel_size - 1) // stride + (padding < stride - 1)
    phases: dict[tuple[int, int], Tensor] = {}
    for tap, target in enumerate(targets):
        (down, row), (right, col) = (divmod(x, stride) for x in divmod(tap, kernel_size))
        moved = F.pad(target, (right, steps - right, down, steps - down))
        phases[row, col] = phases[row, col] + moved if (row, col) in phases else moved
    nothing = torch.zeros_like(phases[0, 0])
    grid = [
        phases.get((i, j), nothing)[..., None, :, :] for i in range(stride) for j in range(stride)
    ]
    # (B, heads, C / heads, stride**2, rows, columns)
    out = F.pixel_shuffle(torch.cat(grid, dim=3).flatten(0, 1).flatten(1, 2), stride)
    return out.unflatten(0, targets[0].shape[:2])

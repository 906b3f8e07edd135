"""Shared by the C++ backends: tensors as the kernels take them.

The kernels compute in float32 or float64 on maps ``(..., H, W, C)`` with the channels innermost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.extension import round_up

# Parts in which the gradients of tables are summed, whatever the number of threads.
PARTS = 16


def computation_dtype(x: Tensor) -> torch.dtype:
    """float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def to_pixels(x: Tensor, dtype: torch.dtype, lanes: int = 1) -> Tensor:
    """``(..., C, H, W)`` as ``(..., H, W, C)``; a view if possible.

    Args:
        x: the map.
        dtype: of the result.
        lanes: zeros are added until this number divides the channels.
    """
    x = x.to(dtype).movedim(-3, -1)
    pad = round_up(x.shape[-1], lanes) - x.shape[-1]
    if pad:
        x = F.pad(x, (0, pad))
    # F.pad takes some maps of one column for channels-last.
    return x if x.stride(-1) == 1 else x.contiguous()


def room_for(result: Tensor, dtype: torch.dtype, lanes: int = 1) -> Tensor:
    """Where a kernel writes the pixels of ``result`` ``(..., C, H, W)``: its own memory if it has
    the layout and dtype of ``to_pixels``, else new memory, which ``finish`` copies."""
    pixels = result.movedim(-3, -1)
    *lead, channels = pixels.shape
    if dtype == result.dtype and channels % lanes == 0 and pixels.stride(-1) == 1:
        return pixels
    return result.new_empty((*lead, round_up(channels, lanes)), dtype=dtype)


def finish(result: Tensor, pixels: Tensor) -> Tensor:
    """``result``, with the pixels in it that a kernel wrote to ``room_for`` it."""
    if pixels.data_ptr() != result.data_ptr():
        result.copy_(pixels[..., : result.shape[-3]].movedim(-1, -3))
    return result

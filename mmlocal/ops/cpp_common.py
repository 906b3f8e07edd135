"""Shared by the C++ backends: tensors in the layout of the kernels.

The kernels compute in float32 or float64 on maps ``(..., H, W, C)`` with the channels innermost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.extension import round_up
from mmlocal.ops.layout import is_channels_last, new_map

# How many parts the gradients of tables are summed in. It does not depend on the number of threads.
PARTS = 16


def computation_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float32 for half precision, else the dtype of ``x``."""
    return torch.promote_types(x.dtype, torch.float32)


def to_pixels(x: Tensor, dtype: torch.dtype, lanes: int = 1) -> Tensor:
    """Return ``(..., C, H, W)`` as ``(..., H, W, C)``, as a view if possible.

    Args:
        x: ``(..., C, H, W)``.
        dtype: dtype of the result.
        lanes: zeros are added until this number divides the channels.
    """
    if x.dtype != dtype:
        x = x.to(dtype)
    x = x.movedim(-3, -1)
    pad = round_up(x.shape[-1], lanes) - x.shape[-1]
    if pad:
        x = F.pad(x, (0, pad))
    # F.pad mistakes some maps of one column for channels-last.
    return x if x.stride(-1) == 1 else x.contiguous()


class Output:
    """A new map ``(..., C, H, W)`` whose pixels a kernel writes.

    Attributes:
        pixels: ``(..., H, W, padded C)``, where the kernel writes. This is the memory of the map if
            its layout and dtype suit the kernel, and else memory that :meth:`finish` copies.

    Args:
        like: gives the map's dtype, device and memory format.
        shape: shape of the map.
        dtype: dtype that the kernel computes in.
        lanes: the kernel wants a multiple of this number of channels.
    """

    def __init__(
        self, like: Tensor, shape: Sequence[int], dtype: torch.dtype, lanes: int = 1
    ) -> None:
        *lead, channels, height, width = shape
        padded = round_up(channels, lanes)
        self._map = None
        if dtype != like.dtype or padded != channels or not is_channels_last(like):
            self._map = new_map(like, shape)
        self.pixels = like.new_empty((*lead, height, width, padded), dtype=dtype)

    def finish(self) -> Tensor:
        """Return the map, once the kernel has written the pixels."""
        if self._map is None:
            return self.pixels.movedim(-1, -3)
        return self._map.copy_(self.pixels[..., : self._map.shape[-3]].movedim(-1, -3))

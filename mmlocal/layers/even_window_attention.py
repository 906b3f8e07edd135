"""Attention in equal windows, as few as their largest size allows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, as_side, check_map
from mmlocal.layers.mixers import register_mixer
from mmlocal.layers.window_msa import WindowMSA, crop_map, window_partition, window_reverse


@register_mixer
class EvenWindowAttention(Unscripted, nn.Module):
    """Window attention on a map of any size, which is cut into equal windows.

    Along each side there are as few windows as their largest size allows, all of one size. If
    ``window_size`` is 14, a side of 20 tokens has two windows of 10, and a side of 12 tokens has
    one window of 12. If a side cannot be cut evenly, the layer pads the map at the bottom or right.
    No token attends to padding.

    Args:
        embed_dims: channels.
        num_heads: must divide ``embed_dims``.
        window_size: largest width of a window, in tokens; also as a pair of equal numbers.
        **kwargs: other arguments of :class:`~mmlocal.layers.WindowMSA`.

    Raises:
        ValueError: the window is not a square, or :class:`~mmlocal.layers.WindowMSA` refuses
            an argument.
        TypeError: an argument has another type.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, window_size: int | tuple[int, int] = 7, **kwargs: Any
    ) -> None:
        super().__init__()
        self.window_size = window_size = as_side("window_size", window_size)
        self.embed_dims = embed_dims
        self.w_msa = WindowMSA(embed_dims, num_heads, (window_size, window_size), **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        check_map(x, self.embed_dims)
        height, width = x.shape[1:3]
        rows, cols = ((side + self.window_size - 1) // self.window_size for side in (height, width))
        size = ((height + rows - 1) // rows, (width + cols - 1) // cols)
        padded_height, padded_width = rows * size[0], cols * size[1]
        mask = None
        # An ONNX graph has one branch, for maps with and without padding.
        if torch.onnx.is_in_onnx_export() or (padded_height, padded_width) != (height, width):
            pad = (0, 0, 0, padded_width - width, 0, padded_height - height)
            mask = F.pad(x.new_zeros(1, height, width, 1), pad, value=float("-inf"))
            mask = window_partition(mask, size).transpose(1, 2)
            x = F.pad(x, pad)
        x = self.w_msa(window_partition(x, size), size, mask)
        x = window_reverse(x, size, padded_height, padded_width)
        return crop_map(x, height, width)

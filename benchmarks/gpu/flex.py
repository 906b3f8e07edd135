"""Neighbourhood attention by FlexAttention, as a mixer of a Swin Transformer."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks.peers import masked_attention, neighbourhood_mask

_compiled = torch.compile(flex_attention, dynamic=False)


@cache
def _mask(height: int, width: int, kernel_size: int, device: torch.device) -> BlockMask:
    return neighbourhood_mask(height, width, kernel_size, device)


class FlexNeighborhood(nn.Module):
    """Each pixel attends to the pixels around it, cut off at the border.

    Args:
        embed_dims: channels in and out.
        num_heads: must divide ``embed_dims``.
        kernel_size: side of a window in pixels, odd.
        compiled: whether to compile FlexAttention, without which it holds all pairs of pixels.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, kernel_size: int = 7, compiled: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.attention = _compiled if compiled else flex_attention
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)`` to the same shape.

        Args:
            x: the map.
        """
        qkv = self.qkv(x).unflatten(3, (3, self.num_heads, -1))
        mask = _mask(*x.shape[1:3], self.kernel_size, x.device)
        out = masked_attention(*qkv.unbind(3), mask, self.attention)
        return self.proj(out.flatten(3))

"""VOLO's outlook attention as a layer."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_attention
from mmlocal.layers.checks import Unscripted, as_side, check_int, check_map
from mmlocal.layers.linear import Linear
from mmlocal.layers.mixers import register_mixer
from mmlocal.ops import outlook_attention


@register_mixer
class OutlookAttention(Unscripted, nn.Module):
    """Windows that mix their own pixels by a matrix, which a pooled pixel gives without any keys.

    The layer averages each ``stride x stride`` block of pixels. A linear map turns each average
    into one matrix per head, with a row for each pixel of the window around the block. The softmax
    of a row weights the values of the window. Windows overlap, and their results add up.

    Args:
        embed_dims: channels in and out.
        num_heads: must divide ``embed_dims``. Head ``n`` has the channels
            ``[n * embed_dims / num_heads, (n + 1) * embed_dims / num_heads)`` of the values.
        kernel_size: odd width of the window, in pixels; also as a pair of equal numbers.
        stride: distance between windows, in pixels.
        padding: number of pixels by which windows reach beyond the map. It must be
            ``kernel_size // 2``, so that each average has one window.
        qkv_bias: whether the projection to the values has a bias.
        qk_scale: factor of the logits; ``None`` for ``(embed_dims / num_heads) ** -0.5``.
        attn_drop_rate: dropout on the attention maps.
        proj_drop_rate: dropout on the output.
        backend: name of a backend of :func:`mmlocal.ops.outlook_attention`; ``None`` for the
            fastest.

    Raises:
        ValueError: ``kernel_size`` is even, ``padding`` does not fit it, ``num_heads`` does not
            divide ``embed_dims``, a count is below 1, a rate is out of [0, 1], or ``qk_scale`` is
            not finite.
        TypeError: an argument has another type.

    Note:
        Parameters have the names and shapes of the official layer.

    Source:
        VOLO: Vision Outlooker for Visual Recognition, Yuan et al. 2021, section 3.1.
    """

    query_places: Literal["taps"] = "taps"

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int = 2,
        padding: int = 1,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        kernel_size = as_side("kernel_size", kernel_size, odd=True)
        check_attention(embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, proj_drop_rate)
        check_int(stride=stride)
        check_int(0, padding=padding)
        if padding != kernel_size // 2:
            raise ValueError(
                f"padding must be kernel_size // 2 = {kernel_size // 2}, so that each block of "
                f"pixels has one window, got {padding}"
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = 1
        self.qk_scale = (embed_dims // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.attn_drop_rate = attn_drop_rate
        self.backend = backend

        self.v = Linear(embed_dims, embed_dims, bias=qkv_bias)
        self.attn = Linear(embed_dims, num_heads * kernel_size**4)
        self.proj = Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        attn = self._logits(x)
        dropout = self.training and self.attn_drop_rate > 0
        if dropout:
            maps = attn.unflatten(3, (-1, self.kernel_size**2)).softmax(dim=4)
            attn = F.dropout(maps, self.attn_drop_rate).flatten(3)
        # The op reads a permuted view as a channels-last map, so nothing is copied.
        out = outlook_attention(
            self.v(x).permute(0, 3, 1, 2),
            attn.permute(0, 3, 1, 2),
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            softmax=not dropout,
            backend=self.backend,
        )
        return self.proj_drop(self.proj(out.permute(0, 2, 3, 1)))

    def attention_maps(self, x: Tensor) -> Tensor:
        """Compute how the pixels of each window attend to each other, to draw it.

        Args:
            x: ``(B, H, W, embed_dims)``.

        Returns:
            ``(B, kernel_size**2, num_heads, kernel_size**2, ceil(H / stride), ceil(W / stride))``,
            before dropout. The second dimension is the pixel of the window that attends. The sum
            over the fourth dimension is 1.

        Raises:
            ValueError: ``x`` has any other shape.
        """
        taps = self.kernel_size**2
        maps = self._logits(x).unflatten(3, (self.num_heads, taps, taps)).softmax(dim=5)
        return maps.permute(0, 4, 3, 5, 1, 2)

    def _logits(self, x: Tensor) -> Tensor:
        """Compute the logits ``(B, rows, columns, num_heads * kernel_size**4)`` of all windows."""
        check_map(x, self.embed_dims)
        # A block at the border is the average of its pixels in the map.
        x = x.permute(0, 3, 1, 2)
        if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
            blocks = _means_of_blocks(x, self.stride)
        else:
            blocks = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return self.attn(blocks.permute(0, 2, 3, 1)) * self.qk_scale


def _means_of_blocks(x: Tensor, side: int) -> Tensor:
    """Average pooling with ``ceil_mode`` for exported programs.

    PyTorch's pooling asks whether a block is at the border. The answer would limit a program to odd
    or to even maps.
    """
    height, width = x.shape[2:]
    below, right = (((n - 1) // side + 1) * side - n for n in (height, width))
    inside = F.pad(torch.ones_like(x[:1, :1]), (0, right, 0, below))
    return F.avg_pool2d(F.pad(x, (0, right, 0, below)), side) / F.avg_pool2d(inside, side)

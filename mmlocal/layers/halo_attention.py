"""Attention of blocks of queries to the same block of keys and a halo around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_attention
from mmlocal.layers.checks import Unscripted, as_side, check_int, check_map
from mmlocal.layers.linear import Linear
from mmlocal.layers.mixers import register_mixer
from mmlocal.layers.window_msa import (
    channels_as_maps,
    crop_map,
    maps_as_channels,
    window_partition,
    window_reverse,
)


def halo_windows(x: Tensor, block: tuple[int, int], halo: int) -> Tensor:
    """Cut a map into overlapping windows: a block each, and the tokens around it.

    Args:
        x: ``(B, H, W, C)``, already padded by ``halo`` on all sides.
        block: height and width ``(bh, bw)`` of a block, in tokens. They divide ``H - 2 * halo``
            and ``W - 2 * halo``.
        halo: width of the halo, in tokens.

    Returns:
        ``(B * blocks, (bh + 2 * halo) * (bw + 2 * halo), C)``.
    """
    bh, bw = block
    windows = x.unfold(1, bh + 2 * halo, bh).unfold(2, bw + 2 * halo, bw)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(0, 2).flatten(1, 2)


@register_mixer
class HaloAttention(Unscripted, nn.Module):
    """Self-attention in which a block of queries shares its keys: its own tokens and a halo.

    The map is cut into blocks of ``block_size x block_size`` queries. All queries of a block attend
    to the tokens of the block and to the ``halo_size`` tokens around it on each side. The logit of
    query ``p`` and key ``s`` is ``qk_scale * q_p . (k_s + r_rows[dy] + r_columns[dx])``, with the
    offset ``(dy, dx) = s - p``. Queries never attend to tokens outside the map.

    Args:
        embed_dims: channels in and out.
        num_heads: must divide ``embed_dims``.
        block_size: width of a block of queries, in tokens; also as a pair of equal numbers.
        halo_size: width of the halo, in tokens; 0 for none.
        qkv_bias: whether the projection to q, k, v has a bias.
        qk_scale: factor of the logits; ``None`` for ``(embed_dims / num_heads) ** -0.5``.
        attn_drop_rate: dropout on the attention map.
        proj_drop_rate: dropout on the output.

    Raises:
        ValueError: the block is not a square, ``num_heads`` does not divide ``embed_dims``, a count
            is below 1, ``halo_size`` is below 0, a rate is out of [0, 1], or a number is not
            finite.
        TypeError: an argument has another type.

    Note:
        Windows overlap, so each key is copied ``(1 + 2 * halo_size / block_size) ** 2`` times: 3.1
        times by default. This belongs to the method. A sliding window has no such copies, because
        it needs no common keys for the queries of a block.

        If a side of the map is smaller than a block, the block shrinks to it. The output is the
        same. Other maps are padded to a multiple of the block, and no query attends to padding.

        The paper describes the position embeddings by their source, where rows and columns have
        half of the channels each. Here both have all channels of a head, all heads share them, and
        they start as a truncated normal of 0.02. All this is our choice.

    Source:
        Scaling Local Self-Attention for Parameter Efficient Visual Backbones, Vaswani et al. 2021
        (HaloNet), section 2, with the position embeddings of Ramachandran et al. 2019.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        block_size: int | tuple[int, int] = 8,
        halo_size: int = 3,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_attention(embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, proj_drop_rate)
        check_int(0, halo_size=halo_size)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.block_size = as_side("block_size", block_size)
        self.halo_size = halo_size
        self.qk_scale = (embed_dims // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.attn_drop_rate = attn_drop_rate
        self.qkv = Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)

        offsets = 2 * (self.block_size + halo_size) - 1
        self.rel_pos_rows = nn.Parameter(torch.empty(offsets, embed_dims // num_heads))
        self.rel_pos_columns = nn.Parameter(torch.empty(offsets, embed_dims // num_heads))
        for table in (self.rel_pos_rows, self.rel_pos_columns):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        q, k, v, bias, block = self._project(x)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias,
            dropout_p=self.attn_drop_rate if self.training else 0.0,
            scale=1.0,
        )
        return self.proj_drop(self.proj(self._join(out, block, x)))

    def attention_taps(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Compute which tokens each token may read, as ``HasWindowAttention`` describes it."""

        def taps(side: int) -> Tensor:
            block = min(side, self.block_size)
            starts = torch.arange(side)[:, None] // block * block - self.halo_size
            rows = starts + torch.arange(block + 2 * self.halo_size)
            return rows.masked_fill((rows < 0) | (rows >= side), -1)

        return taps(height), taps(width)

    def attention_maps(self, x: Tensor) -> Tensor:
        """Compute how each token attends to its block and the halo, to draw it.

        Args:
            x: ``(B, H, W, embed_dims)``.

        Returns:
            ``(B, num_heads, taps, H, W)``, before dropout; 0 for taps outside the map.

        Raises:
            ValueError: ``x`` has another shape.
        """
        q, k, _, bias, block = self._project(x)
        maps = (q @ k.transpose(2, 3) + bias).softmax(dim=3)
        return channels_as_maps(self._join(maps, block, x), self.num_heads)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, int]]:
        """Compute the scaled queries, keys and values of all blocks, and the logits' offset.

        The first three are ``(B * blocks, heads, N or K, head_dims)``, and the fourth is
        ``(B * blocks, heads, N, K)``. The last are height and width of a block.
        """
        check_map(x, self.embed_dims)
        height, width = x.shape[1:3]
        halo = self.halo_size
        bh = bw = self.block_size
        # An ONNX graph has one size of blocks for all maps. What a block has beyond the map is
        # masked, and cut off at the end.
        if not torch.onnx.is_in_onnx_export():
            # A comparison rather than min(): torch.compile then sees a number or the side itself.
            bh = height if height < bh else bh
            bw = width if width < bw else bw
        block = (bh, bw)
        padded_height, padded_width = self._padded(x, block)
        below, right = padded_height - height, padded_width - width

        q, k, v = self.qkv(x).chunk(3, dim=3)
        q = self._heads(window_partition(F.pad(q, (0, 0, 0, right, 0, below)), block))
        q = q * self.qk_scale
        around = (0, 0, halo, halo + right, halo, halo + below)
        k, v = (self._heads(halo_windows(F.pad(part, around), block, halo)) for part in (k, v))
        inside = F.pad(x.new_zeros(1, height, width, 1), around, value=float("-inf"))
        mask = halo_windows(inside, block, halo).squeeze(2)  # (blocks, keys)
        bias = self._position_logits(q, block)
        bias = bias + mask.repeat(x.shape[0], 1).to(bias.dtype)[:, None, None]
        return q, k, v, bias, block

    def _padded(self, x: Tensor, block: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a map that is padded to whole blocks."""
        # Sums and products rather than remainders: torch.compile has to prove these sizes equal.
        (height, width), (bh, bw) = x.shape[1:3], block
        return (height + bh - 1) // bh * bh, (width + bw - 1) // bw * bw

    def _join(self, windows: Tensor, block: tuple[int, int], x: Tensor) -> Tensor:
        """Put blocks ``(B * blocks, heads, N, D)`` together: ``(B, H, W, heads * D)``."""
        out = window_reverse(maps_as_channels(windows), block, *self._padded(x, block))
        return crop_map(out, *x.shape[1:3])

    def _heads(self, windows: Tensor) -> Tensor:
        """Split ``(B * blocks, N, embed_dims)`` to ``(B * blocks, heads, N, head_dims)``."""
        return windows.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _position_logits(self, q: Tensor, block: tuple[int, int]) -> Tensor:
        """The products of queries and position embeddings, for all keys of the window.

        Args:
            q: ``(B * blocks, heads, bh * bw, head_dims)``.
            block: height and width ``(bh, bw)`` of a block.

        Returns:
            ``(B * blocks, heads, bh * bw, (bh + 2 * halo_size) * (bw + 2 * halo_size))``.
        """
        q = q.unflatten(2, block)
        rows, columns = (
            self._embeddings(table, side)
            for table, side in zip((self.rel_pos_rows, self.rel_pos_columns), block, strict=True)
        )
        by_row = torch.einsum("bnyxd,ykd->bnyxk", q, rows)
        by_column = torch.einsum("bnyxd,xkd->bnyxk", q, columns)
        logits = by_row[..., :, None] + by_column[..., None, :]
        return logits.flatten(4).flatten(2, 3)

    def _embeddings(self, table: Tensor, side: int) -> Tensor:
        """Embeddings of one side of a block, ``(side, side + 2 * halo_size, head_dims)``."""
        keys = torch.arange(side + 2 * self.halo_size, device=table.device) - self.halo_size
        offsets = keys - torch.arange(side, device=table.device)[:, None]
        return table[offsets + self.block_size + self.halo_size - 1]

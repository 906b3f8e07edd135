"""Global self-attention with a ghost head over its attention maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import (
    Unscripted,
    as_pair,
    check_flag,
    check_int,
    check_map,
    check_number,
    check_rate,
)
from mmlocal.layers.linear import Linear
from mmlocal.layers.mixers import register_mixer


@register_mixer
class GhostAttention(Unscripted, nn.Module):
    """Global self-attention in which static matrices turn each head's map into several maps.

    The channels of the values form ``num_heads * ghost_ratio`` groups of equal width, in order.
    Group ``g`` uses the attention map of head ``n = g // ghost_ratio``, after the softmax. Its
    weight for query ``p`` and key ``s`` is::

        ghost_mul[g, s - p]**lam * softmax_s(q_n k_n^T)[p, s] + gamma * ghost_add[g, s - p]

    Where ``ghost_mul`` is 1 and ``ghost_add`` is 0, this is plain attention with ``num_heads``
    heads.

    Args:
        embed_dims: channels.
        num_heads: heads of queries and keys; ``num_heads * ghost_ratio`` must divide
            ``embed_dims``.
        map_size: height and width, in tokens, of the map for which the layer stores the static
            matrices; one number for both. For a map of another size, the layer interpolates them.
            It also scales ``ghost_add`` by the ratio of the areas, because a softmax over more
            tokens gives each token less.
        ghost_ratio: number of maps made of each head's map; 2 doubles the heads.
        lam: exponent of the multiplicative matrices; 0 for none.
        gamma: factor of the additive matrices; 0 for none.
        qkv_bias: whether the projection to q, k, v has a bias.
        qk_scale: factor of q k^T; ``None`` for ``(embed_dims / num_heads) ** -0.5``.
        attn_drop_rate: dropout on the attention maps, before the ghost head.
        proj_drop_rate: dropout on the output.

    Raises:
        ValueError: ``num_heads * ghost_ratio`` does not divide ``embed_dims``, a count is below 1,
            a rate is out of [0, 1], or a number is not finite.
        TypeError: an argument has another type.

    Note:
        The paper and the official code define the ghost head for local attention only, by this
        formula. About global attention, the paper says that the ghost head doubles the heads, after
        the softmax, in a DeiT-Ti without class token. The rest is our choice:

        * The matrices depend only on the offset from query to key. This is the local ghost head
          with a window as large as the map.
        * There is one matrix for each new head, not for each channel.
        * All maps pass the ghost head; the layer keeps none as it is.
        * Queries and keys keep their heads.
        * ``ghost_mul`` starts at 1. ``ghost_add`` starts as a truncated normal of 0.02.

        If ``lam`` is not an integer and ``ghost_mul`` becomes negative, the output is NaN.

    Source:
        ELSA, Zhou et al. 2021, section 5, eq. 7 and 8, and appendix C.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        map_size: int | tuple[int, int] = (14, 14),
        ghost_ratio: int = 2,
        lam: float = 1.0,
        gamma: float = 1.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads, ghost_ratio=ghost_ratio)
        check_number(lam=lam, gamma=gamma)
        check_flag(qkv_bias=qkv_bias)
        check_rate(attn_drop_rate=attn_drop_rate, proj_drop_rate=proj_drop_rate)
        if qk_scale is not None:
            check_number(qk_scale=qk_scale)
        if embed_dims % (num_heads * ghost_ratio):
            raise ValueError(
                f"num_heads * ghost_ratio must divide embed_dims={embed_dims}, "
                f"got num_heads={num_heads} and ghost_ratio={ghost_ratio}"
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.map_size = as_pair("map_size", map_size)
        self.ghost_ratio = ghost_ratio
        self.lam = lam
        self.gamma = gamma
        self.qk_scale = (embed_dims // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.qkv = Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)

        self.ghost_mul = self.ghost_add = None
        height, width = self.map_size
        shape = (num_heads * ghost_ratio, 2 * height - 1, 2 * width - 1)
        if lam != 0:
            self.ghost_mul = nn.Parameter(torch.ones(shape))
        if gamma != 0:
            self.ghost_add = nn.Parameter(torch.empty(shape))
            nn.init.trunc_normal_(self.ghost_add, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        check_map(x, self.embed_dims)
        height, width = x.shape[1:3]
        q, k, v = self.qkv(x).flatten(1, 2).chunk(3, dim=2)
        q, k = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (q, k))
        v = v.unflatten(2, (self.num_heads * self.ghost_ratio, -1)).transpose(1, 2)

        maps = (q * self.qk_scale @ k.transpose(2, 3)).softmax(dim=3)
        maps = self.attn_drop(maps).repeat_interleave(self.ghost_ratio, dim=1)
        if self.ghost_mul is not None:
            maps = maps * self._matrices(self.ghost_mul, height, width) ** self.lam
        if self.ghost_add is not None:
            area = self.map_size[0] * self.map_size[1]
            gamma = self.gamma * area / (height * width)
            maps = maps + gamma * self._matrices(self.ghost_add, height, width)
        x = (maps @ v).transpose(1, 2).flatten(2).unflatten(1, (height, width))
        return self.proj_drop(self.proj(x))

    @staticmethod
    def _matrices(table: Tensor, height: int, width: int) -> Tensor:
        """Spread a table ``(heads, rows, columns)`` of offsets to ``(heads, H * W, H * W)``."""
        size = (2 * height - 1, 2 * width - 1)
        exporting = torch.onnx.is_in_onnx_export()
        # An ONNX graph has one branch for all sizes. To resize to the same size changes nothing.
        if exporting or table.shape[1:] != size:
            table = F.interpolate(table[None], size, mode="bicubic", align_corners=False)[0]
        if exporting:  # ONNX has no views
            rows, columns = (_offsets(side, table.device) for side in (height, width))
            pairs = table.index_select(1, rows).index_select(2, columns)
            pairs = pairs.unflatten(1, (height, height)).unflatten(3, (width, width))
            return pairs.transpose(2, 3).reshape(-1, height * width, height * width)
        # Two views replace an index. Entry [h, i, j, y, x] is the table at row i + y and column
        # j + x. The keys of the query in row p begin at i = height - 1 - p.
        pairs = table.unfold(1, height, 1).unfold(2, width, 1).flip(1, 2)
        return pairs.reshape(-1, height * width, height * width)


def _offsets(side: int, device: torch.device) -> Tensor:
    """Return the offset from each query to each key of one side, from 0, ``(side * side,)``."""
    position = torch.arange(side, device=device)
    return (position - position[:, None] + side - 1).flatten()

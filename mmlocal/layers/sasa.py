"""Stand-alone self-attention: each token attends to the window around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_attention
from mmlocal.layers.checks import (
    Unscripted,
    as_side,
    check_choice,
    check_flag,
    check_int,
    check_map,
)
from mmlocal.layers.linear import Linear
from mmlocal.layers.mixers import register_mixer
from mmlocal.ops import elsa_attention, neighborhood_scores


@register_mixer
class SASA(Unscripted, nn.Module):
    """Self-attention of each pixel to the window around it, with relative positions.

    For the query at pixel ``p``, the keys at the pixels ``s`` of its window, and each head::

        out[p] = sum_s softmax_s(qk_scale * q[p].(k[s] + r[s - p])) v[s]

    The first half of ``r`` depends on the row of ``s - p``, and the second half on its column. The
    channels ``[n * embed_dims / num_heads, (n + 1) * embed_dims / num_heads)`` of queries, keys and
    values belong to head ``n``. All heads share ``r``. A linear projection follows. No window is
    ever written out: the layer holds ``kernel_size**2`` logits per head and pixel.

    Args:
        embed_dims: channels in and out.
        num_heads: must divide ``embed_dims``.
        kernel_size: odd width of the window, in taps; also as a pair of equal numbers.
        dilation: distance between taps, in pixels.
        border: part that taps outside the map take. ``"mask"``: none. ``"zero"``: they have keys
            and values of 0, as if the projected map were padded, and take part in the softmax.
        rel_pos: whether there is the term ``q.r``. It needs an even number of channels per head.
        qkv_bias: whether the projection to q, k, v has a bias.
        qk_scale: factor of the logits; ``None`` for ``(embed_dims / num_heads) ** -0.5``.
        attn_drop_rate: dropout on the attention maps.
        proj_drop_rate: dropout on the output.
        backend: name of a backend of :func:`mmlocal.ops.neighborhood_scores` and
            :func:`mmlocal.ops.elsa_attention`; ``None`` for the fastest.

    Raises:
        ValueError: ``kernel_size`` is even, ``num_heads`` does not divide ``embed_dims``, the
            channels of a head have no halves, ``border`` is unknown, a count is below 1, a rate is
            out of [0, 1], or a number is not finite.
        TypeError: an argument has another type.

    Note:
        The paper has no factor ``qk_scale`` and does not say what happens at the border, whether
        heads share ``r``, or how it starts. Here it starts as a truncated normal of deviation 0.02.

    Source:
        Stand-Alone Self-Attention in Vision Models, Ramachandran et al. 2019,
        https://arxiv.org/abs/1906.05909, section 3, eq. 2 and 3.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 7,
        dilation: int = 1,
        border: str = "mask",
        rel_pos: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        kernel_size = as_side("kernel_size", kernel_size, odd=True)
        check_attention(embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, proj_drop_rate)
        check_int(dilation=dilation)
        check_choice(("mask", "zero"), border=border)
        check_flag(rel_pos=rel_pos)
        head_dims = embed_dims // num_heads
        if rel_pos and head_dims % 2:
            raise ValueError(
                f"rel_pos=True needs an even number of channels per head, got {head_dims} "
                f"(embed_dims={embed_dims}, num_heads={num_heads}); set rel_pos=False"
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.stride = 1
        self.padding = kernel_size // 2 * dilation
        self.dilation = dilation
        self.border = border
        self.qk_scale = head_dims**-0.5 if qk_scale is None else qk_scale
        self.attn_drop_rate = attn_drop_rate
        self.backend = backend

        self.qkv = Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)
        self.rel_pos = None
        if rel_pos:  # rows, then columns
            self.rel_pos = nn.Parameter(torch.empty(2, kernel_size, head_dims // 2))
            nn.init.trunc_normal_(self.rel_pos, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        value, logits = self._project(x)
        dropout = self.training and self.attn_drop_rate > 0
        if dropout:
            logits = F.dropout(self._softmax(logits), self.attn_drop_rate).flatten(1, 2)
        out = elsa_attention(
            value,
            logits,
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            softmax=not dropout,
            backend=self.backend,
        )
        return self.proj_drop(self.proj(out.permute(0, 2, 3, 1)))

    def attention_maps(self, x: Tensor) -> Tensor:
        """Compute how each pixel attends to its neighbours, to draw it.

        Args:
            x: ``(B, H, W, embed_dims)``.

        Returns:
            ``(B, num_heads, kernel_size**2, H, W)``, before dropout. The taps of a pixel sum to 1.

        Raises:
            ValueError: ``x`` has another shape.
        """
        return self._softmax(self._project(x)[1])

    def _softmax(self, logits: Tensor) -> Tensor:
        return logits.unflatten(1, (self.num_heads, -1)).softmax(dim=2)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the values, and the logits ``(B, num_heads * kernel_size**2, H, W)``."""
        check_map(x, self.embed_dims)
        query, key, value = self.qkv(x).chunk(3, dim=3)
        query = query * self.qk_scale
        # The op reads a permuted view as a channels-last tensor, so nothing is copied.
        logits = neighborhood_scores(
            query.permute(0, 3, 1, 2),
            key.permute(0, 3, 1, 2),
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            border=self.border,
            backend=self.backend,
        )
        if self.rel_pos is not None:
            halves = query.unflatten(3, (self.num_heads, 2, -1))
            rows, columns = torch.einsum("byxnsd,skd->sbnkyx", halves, self.rel_pos)
            taps = logits.unflatten(1, (self.num_heads, self.kernel_size, self.kernel_size))
            taps = (taps + rows.unsqueeze(3)).add_(columns.unsqueeze(2))
            logits = taps.flatten(1, 3)
        return value.permute(0, 3, 1, 2), logits

"""Enlargement of a map by learned queries."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmlocal.layers.checks import as_side
from mmlocal.layers.learned_queries import LearnedQueries


class UpsampleQnA(LearnedQueries):
    """Enlarge a map: each of ``scale_factor**2`` learned queries fills one sub-pixel.

    A token becomes a cell of ``scale_factor x scale_factor`` tokens. Query ``a * scale_factor + b``
    gives row ``a`` and column ``b`` of the cell.

    Args:
        embed_dims: channels in.
        num_heads: must divide ``attn_dims``.
        scale_factor: factor of height and width; also as a pair of equal numbers.
        kernel_size: odd width of the window, in tokens of the small map; also as a pair of equal
            numbers.
        attn_dims: channels of queries, keys and values; ``None`` for ``embed_dims``.
        out_dims: channels out; ``None`` for ``attn_dims``.
        qkv_bias: whether the projections of values and output have a bias. A bias of the keys would
            have no effect.
        normalize_query: whether to scale each head's query to unit length.
        detach_query_norm: whether gradients ignore the division by the length of the query.
        scale_pos_embed: whether to divide the position bias by ``sqrt(head_dims)`` before it is
            added to the scores. The bias is a learned number per tap, query and head.
        backend: name of a backend of :func:`mmlocal.ops.qna_attention`; ``None`` for the fastest.

    Raises:
        ValueError: ``kernel_size`` is even, ``num_heads`` does not divide ``attn_dims``, or a count
            is below 1.
        TypeError: an argument has another type.

    Source:
        Learned Queries for Efficient Local Attention, Arar et al. 2022, appendix F. No code was
        published. There is no ``attn_scale``, because each query has an output of its own.
    """

    query_places: Literal["cells"] = "cells"

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        scale_factor: int | tuple[int, int] = 2,
        kernel_size: int | tuple[int, int] = 3,
        attn_dims: int | None = None,
        out_dims: int | None = None,
        qkv_bias: bool = False,
        normalize_query: bool = True,
        detach_query_norm: bool = False,
        scale_pos_embed: bool = False,
        backend: str | None = None,
    ) -> None:
        scale_factor = as_side("scale_factor", scale_factor)
        kernel_size = as_side("kernel_size", kernel_size, odd=True)
        super().__init__(
            embed_dims,
            num_heads,
            scale_factor**2,
            kernel_size,
            1,
            kernel_size // 2,
            attn_dims,
            out_dims,
            qkv_bias,
            normalize_query,
            detach_query_norm,
            scale_pos_embed,
            "none",
            backend,
        )
        self.scale_factor = scale_factor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend and rearrange.

        Args:
            x: ``(B, H, W, embed_dims)``.
            mask: ``(B, H, W)`` bool, true for tokens that no window may see, such as padding.

        Returns:
            ``(B, H * scale_factor, W * scale_factor, out_dims)``.

        Raises:
            ValueError: ``x`` or ``mask`` has another shape, or ``mask`` is not bool.
        """
        x = self._attend(x, mask, sum_queries=False)  # (B, s * s, C, H, W)
        x = x.unflatten(1, (self.scale_factor, self.scale_factor)).permute(0, 4, 1, 5, 2, 3)
        return self.proj(x.flatten(1, 2).flatten(2, 3))

"""Enlargement of a map by learned queries."""

from __future__ import annotations

from torch import Tensor

from mmlocal.layers.checks import as_side
from mmlocal.layers.learned_queries import LearnedQueries


class UpsampleQnA(LearnedQueries):
    """Enlarge a map: each of ``scale_factor**2`` learned queries fills one sub-pixel.

    Query ``a * scale_factor + b`` gives row ``a`` and column ``b`` of the cell that a token
    becomes.

    Args:
        embed_dims: channels in.
        num_heads: must divide ``attn_dims``.
        scale_factor: factor of height and width; also as a pair of equal numbers.
        kernel_size: odd width of the window, in tokens of the small map; also as a pair of equal
            numbers.
        attn_dims: channels of queries, keys and values; ``None`` for ``embed_dims``.
        out_dims: channels out; ``None`` for ``attn_dims``.
        qkv_bias: whether values and output have a bias (on keys it would have no effect).
        normalize_query: whether each head's query has unit length.
        detach_query_norm: whether gradients ignore the division by the length of the query.
        scale_pos_embed: whether the position bias, a learned number per tap, query and head, is
            divided by ``sqrt(head_dims)`` before it is added to the scores.
        backend: backend of :func:`mmlocal.ops.qna_attention`; ``None`` for the fastest.

    Raises:
        ValueError: even ``kernel_size``, ``num_heads`` that does not divide ``attn_dims``, a count
            below 1.
        TypeError: an argument of another type.

    Source:
        Learned Queries for Efficient Local Attention, Arar et al. 2022, appendix F. No code was
        published. There is no ``attn_scale``, as each query has an output of its own.
    """

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
            mask: ``(B, H, W)`` bool, true for tokens that no window shall see.

        Returns:
            ``(B, H * scale_factor, W * scale_factor, out_dims)``.

        Raises:
            ValueError: any other shape.
        """
        x = self._attend(x, mask, sum_queries=False)  # (B, s * s, C, H, W)
        x = x.unflatten(1, (self.scale_factor, self.scale_factor)).permute(0, 4, 1, 5, 2, 3)
        return self.proj(x.flatten(1, 2).flatten(2, 3))

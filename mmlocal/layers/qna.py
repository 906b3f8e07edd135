"""The QnA layer: learned queries that attend to overlapping windows."""

from __future__ import annotations

from torch import Tensor

from mmlocal.layers.checks import as_side
from mmlocal.layers.learned_queries import LearnedQueries
from mmlocal.layers.mixers import register_mixer


@register_mixer("qna")
class QnA(LearnedQueries):
    """Local attention by learned queries, shared by all windows.

    Each window holds ``kernel_size x kernel_size`` tokens. ``num_queries`` queries attend to it
    per head; their attention maps are weighted by ``attn_scale`` and added. The channels
    ``[n * attn_dims / num_heads, (n + 1) * attn_dims / num_heads)`` of queries, keys and values
    belong to head ``n``. Tables are query-major: query ``l`` and head ``n`` have column
    ``l * num_heads + n``.

    Args:
        embed_dims: channels in.
        num_heads: must divide ``attn_dims``.
        kernel_size: width of the window, in tokens; also as a pair of equal numbers.
        num_queries: learned queries.
        stride: distance between windows; 2 halves the map.
        padding: tokens by which windows stick out of the map; ``None`` for
            ``(kernel_size - 1) // 2``.
        attn_dims: channels of queries, keys and values; ``None`` for ``embed_dims``.
        out_dims: channels out; ``None`` for ``attn_dims``.
        qkv_bias: whether values and output have a bias (on keys it would have no effect).
        normalize_query: whether each head's query has unit length.
        detach_query_norm: whether gradients ignore the division by the length of the query.
        scale_pos_embed: whether the position bias, a learned number per tap, query and head, is
            divided by ``sqrt(head_dims)`` before it is added to the scores.
        attn_scale: how the queries' attention maps are weighted before they are added.
            ``'normal'``: learned per tap, query and head, starting at N(0, 0.02).
            ``'normal_elementwise'``: the same for all taps. ``'ones'``: as ``'normal'``, starting
            at 1. ``'posneg'``: +1 for the first half of the columns of a table, -1 for the second.
            ``'avg'``: the mean. ``'none'``: the sum.
        backend: backend of :func:`mmlocal.ops.qna_attention`; ``None`` for the fastest.

    Raises:
        ValueError: ``num_heads`` does not divide ``attn_dims``, a count below 1, ``padding`` out of
            range, unknown ``attn_scale``.
        TypeError: an argument of another type.

    Note:
        The published models have two queries of unit length and ``'normal'`` scales. The official
        code has three other kinds of position bias. All three are broken there: they depend on the
        size of the batch or fail. No published model uses them, and this layer leaves them out.

    Source:
        Learned Queries for Efficient Local Attention, Arar et al. 2022, section 3.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 3,
        num_queries: int = 2,
        stride: int = 1,
        padding: int | None = None,
        attn_dims: int | None = None,
        out_dims: int | None = None,
        qkv_bias: bool = False,
        normalize_query: bool = True,
        detach_query_norm: bool = False,
        scale_pos_embed: bool = False,
        attn_scale: str = "normal",
        backend: str | None = None,
    ) -> None:
        kernel_size = as_side("kernel_size", kernel_size)
        super().__init__(
            embed_dims,
            num_heads,
            num_queries,
            kernel_size,
            stride,
            (kernel_size - 1) // 2 if padding is None else padding,
            attn_dims,
            out_dims,
            qkv_bias,
            normalize_query,
            detach_query_norm,
            scale_pos_embed,
            attn_scale,
            backend,
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: ``(B, H, W, embed_dims)``.
            mask: ``(B, H, W)`` bool, true for tokens that no window shall see, such as padding. A
                window without any other token gives 0 before the output projection.

        Returns:
            ``(B, H_out, W_out, out_dims)``, with
            ``H_out = (H + 2 * padding - kernel_size) // stride + 1``.

        Raises:
            ValueError: any other shape, or a map smaller than a window with its padding.
        """
        return self.proj(self._attend(x, mask, sum_queries=True).permute(0, 2, 3, 1))

"""The QnA layer: learned queries that attend to overlapping windows."""

from __future__ import annotations

from torch import Tensor

from mmlocal.layers.checks import as_side
from mmlocal.layers.learned_queries import LearnedQueries
from mmlocal.layers.mixers import register_mixer


@register_mixer
class QnA(LearnedQueries):
    """Local attention by learned queries that all windows share.

    Each window holds ``kernel_size x kernel_size`` tokens. In each head, ``num_queries`` queries
    attend to the window. The layer weights their attention maps by ``attn_scale`` and adds them up.
    The channels
    ``[n * attn_dims / num_heads, (n + 1) * attn_dims / num_heads)`` of queries, keys and values
    belong to head ``n``. Tables are query-major: query ``l`` and head ``n`` have column
    ``l * num_heads + n``.

    Args:
        embed_dims: channels in.
        num_heads: must divide ``attn_dims``.
        kernel_size: width of the window, in tokens; also as a pair of equal numbers.
        num_queries: number of learned queries.
        stride: distance between windows, in tokens; 2 halves the map.
        padding: number of tokens by which windows stick out of the map; ``None`` for
            ``(kernel_size - 1) // 2``.
        attn_dims: channels of queries, keys and values; ``None`` for ``embed_dims``.
        out_dims: channels out; ``None`` for ``attn_dims``.
        qkv_bias: whether the projections of values and output have a bias. A bias of the keys would
            have no effect.
        normalize_query: whether to scale each head's query to unit length.
        detach_query_norm: whether gradients ignore the division by the length of the query.
        scale_pos_embed: whether to divide the position bias by ``sqrt(head_dims)`` before it is
            added to the scores. The bias is a learned number per tap, query and head.
        attn_scale: weights of the queries' attention maps in their sum. ``'normal'``: a learned
            number per tap, query and head, which starts as N(0, 0.02). ``'normal_elementwise'``: a
            learned number per query and head, which starts as N(0, 0.02). ``'ones'``: a learned
            number per tap, query and head, which starts at 1. ``'posneg'``: +1 for the first half
            of the columns of a table, -1 for the second. ``'avg'``: ``1 / num_queries``.
            ``'none'``: 1.
        backend: name of a backend of :func:`mmlocal.ops.qna_attention`; ``None`` for the fastest.

    Raises:
        ValueError: ``num_heads`` does not divide ``attn_dims``, a count is below 1, ``padding`` is
            out of range, or ``attn_scale`` is unknown or does not fit the number of queries.
        TypeError: an argument has another type.

    Note:
        The published models have two queries of unit length and ``'normal'`` scales. The official
        code has three other kinds of position bias. All three are broken there: they fail, or
        depend on the size of the batch. No published model has them, so this layer leaves them out.

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
            mask: ``(B, H, W)`` bool, true for tokens that no window may see, such as padding. A
                window without any other token gives 0 before the output projection.

        Returns:
            ``(B, H_out, W_out, out_dims)``, with
            ``H_out = (H + 2 * padding - kernel_size) // stride + 1``.

        Raises:
            ValueError: ``x`` or ``mask`` has another shape, ``mask`` is not bool, or the padded map
                is smaller than a window.
        """
        return self.proj(self._attend(x, mask, sum_queries=True).permute(0, 2, 3, 1))

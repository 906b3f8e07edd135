"""The QnA layers: learned queries that attend to overlapping windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import (
    Unscripted,
    as_side,
    check_choice,
    check_flag,
    check_int,
    check_map,
    is_int,
)
from mmlocal.layers.init import lecun_normal_
from mmlocal.ops.qna import attention_maps, qna_attention

ATTN_SCALES = ("normal", "normal_elementwise", "ones", "posneg", "avg", "none")


class QueryScores(nn.Module):
    """Scores of tokens: the products of the queries with their keys.

    The queries are multiplied into the weight, and the keys themselves are never computed. So this
    is no ``nn.Linear``, though its weight has the shape of one. A bias would add the same to all
    scores of a query, which the softmax ignores.

    Args:
        embed_dims: channels of the tokens.
        attn_dims: channels of the keys.
    """

    def __init__(self, embed_dims: int, attn_dims: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(attn_dims, embed_dims))

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: ``(B, H, W, embed_dims)``.
            query: ``(num_queries, num_heads, attn_dims / num_heads)``.

        Returns:
            ``(B, H, W, num_queries * num_heads)``.
        """
        weight = self.weight.unflatten(0, query.shape[1:])
        return F.linear(x, torch.einsum("lhd,hdc->lhc", query, weight).flatten(0, 1))

    def extra_repr(self) -> str:
        return "{1}, {0}".format(*self.weight.shape)


class _LearnedQueries(Unscripted, nn.Module):
    """Scores, values and tables of :class:`QnA` and :class:`UpsampleQnA`, made from tokens."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_queries: int,
        kernel_size: int,
        stride: int,
        padding: int,
        attn_dims: int | None,
        out_dims: int | None,
        qkv_bias: bool,
        normalize_query: bool,
        detach_query_norm: bool,
        scale_pos_embed: bool,
        attn_scale: str,
        backend: str | None,
    ) -> None:
        super().__init__()
        attn_dims = embed_dims if attn_dims is None else attn_dims
        out_dims = attn_dims if out_dims is None else out_dims
        check_int(embed_dims=embed_dims, attn_dims=attn_dims, out_dims=out_dims)
        check_int(num_heads=num_heads, num_queries=num_queries, stride=stride)
        check_flag(
            qkv_bias=qkv_bias,
            normalize_query=normalize_query,
            detach_query_norm=detach_query_norm,
            scale_pos_embed=scale_pos_embed,
        )
        check_choice(ATTN_SCALES, attn_scale=attn_scale)
        if not is_int(padding) or not 0 <= padding < kernel_size:
            raise ValueError(
                f"padding must be 0 to kernel_size - 1 = {kernel_size - 1}, got {padding!r}"
            )
        if attn_dims % num_heads:
            raise ValueError(
                f"num_heads must divide attn_dims={attn_dims} (embed_dims={embed_dims} unless "
                f"given), got num_heads={num_heads}"
            )
        if attn_scale == "posneg" and num_queries * num_heads % 2:
            raise ValueError(
                "attn_scale='posneg' needs an even num_queries * num_heads, got "
                f"{num_queries} * {num_heads}"
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_queries = num_queries
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.normalize_query = normalize_query
        self.detach_query_norm = detach_query_norm
        self.scale_pos_embed = scale_pos_embed
        self.attn_scale = attn_scale
        self.backend = backend

        self.query = nn.Parameter(torch.empty(num_queries, attn_dims))
        self.key = QueryScores(embed_dims, attn_dims)
        self.value = nn.Linear(embed_dims, attn_dims, bias=qkv_bias)
        self.proj = nn.Linear(attn_dims, out_dims, bias=qkv_bias)

        taps, tables = kernel_size**2, num_queries * num_heads
        self.rel_pos_table = nn.Parameter(torch.empty(taps, tables))
        if attn_scale in ("normal", "ones"):
            self.attn_scale_table = nn.Parameter(torch.empty(taps, tables))
        elif attn_scale == "normal_elementwise":
            self.attn_scale_table = nn.Parameter(torch.empty(1, tables))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the official code does."""
        std = (self.query.shape[1] // self.num_heads) ** -0.5
        nn.init.trunc_normal_(self.query, std=std, a=-2 * std, b=2 * std)
        for module in self.children():
            lecun_normal_(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.rel_pos_table)
        if self.attn_scale == "ones":
            nn.init.ones_(self.attn_scale_table)
        elif self.attn_scale in ("normal", "normal_elementwise"):
            nn.init.normal_(self.attn_scale_table, std=0.02)

    def _queries(self) -> Tensor:
        """``(num_queries, num_heads, head_dims)``, scaled."""
        query = self.query.unflatten(1, (self.num_heads, -1))
        if self.normalize_query:
            norm = query.norm(dim=2, keepdim=True)
            query = query / ((norm.detach() if self.detach_query_norm else norm) + 1e-6)
        return query * query.shape[2] ** -0.5

    def _scores(self, x: Tensor, query: Tensor, mask: Tensor | None) -> Tensor:
        """``(B, num_queries * num_heads, H, W)``."""
        scores = self.key(x, query).permute(0, 3, 1, 2)
        return scores if mask is None else scores.masked_fill(mask[:, None], float("-inf"))

    def _rel_pos(self) -> Tensor:
        """``(num_queries * num_heads, kernel_size, kernel_size)``."""
        bias = self.rel_pos_table.t()
        if self.scale_pos_embed:
            bias = bias * (self.query.shape[1] // self.num_heads) ** -0.5
        return bias.reshape(-1, self.kernel_size, self.kernel_size)

    def _attn_scale(self) -> Tensor | None:
        """``(num_queries * num_heads, kernel_size, kernel_size)``."""
        tables = self.num_queries * self.num_heads
        if self.attn_scale == "none":
            return None
        if self.attn_scale == "avg":
            scale = self.query.new_full((tables, 1), 1 / self.num_queries)
        elif self.attn_scale == "posneg":
            scale = self.query.new_ones(tables, 1)
            scale[tables // 2 :] = -1
        else:
            scale = self.attn_scale_table.t()
        return scale.expand(-1, self.kernel_size**2).unflatten(1, (self.kernel_size, -1))

    def _check_input(self, x: Tensor, mask: Tensor | None) -> None:
        check_map(x, self.embed_dims)
        if mask is not None and (mask.shape != x.shape[:3] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be bool of shape (B, H, W) = {tuple(x.shape[:3])}, got {mask.dtype} "
                f"of shape {tuple(mask.shape)}"
            )

    def _attend(self, x: Tensor, mask: Tensor | None, sum_queries: bool) -> Tensor:
        self._check_input(x, mask)
        query = self._queries()
        return qna_attention(
            self.value(x).permute(0, 3, 1, 2),
            self._scores(x, query, mask),
            self._rel_pos(),
            self._attn_scale(),
            num_queries=self.num_queries,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            sum_queries=sum_queries,
            backend=self.backend,
        )

    def attention_maps(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """How each window attends to its tokens, before ``attn_scale``; to look at.

        Args:
            x: ``(B, H, W, embed_dims)``.
            mask: ``(B, H, W)`` bool, true for tokens that no window shall see.

        Returns:
            ``(B, num_queries, num_heads, kernel_size**2, H_out, W_out)``.
        """
        self._check_input(x, mask)
        query = self._queries()
        scores = self._scores(x, query, mask)
        return attention_maps(
            scores,
            self._rel_pos(),
            self.num_queries,
            self.kernel_size,
            self.stride,
            self.padding,
        )


class QnA(_LearnedQueries):
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
        backend: of :func:`mmlocal.ops.qna_attention`.

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


class UpsampleQnA(_LearnedQueries):
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
        scale_pos_embed: as in :class:`QnA`.
        backend: of :func:`mmlocal.ops.qna_attention`.

    Raises:
        ValueError: even ``kernel_size``, and as :class:`QnA`.
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

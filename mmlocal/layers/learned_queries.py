"""Learned queries that attend to windows: the base of QnA and UpsampleQnA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlocal.layers.checks import (
    Unscripted,
    check_choice,
    check_flag,
    check_int,
    check_map,
    is_int,
)
from mmlocal.layers.init import lecun_normal_
from mmlocal.layers.linear import Linear
from mmlocal.ops.linear import linear
from mmlocal.ops.qna import attention_maps, qna_attention

ATTN_SCALES = ("normal", "normal_elementwise", "ones", "posneg", "avg", "none")


class QueryScores(nn.Module):
    """Scores of tokens: the products of the queries with the keys of the tokens.

    The layer multiplies the queries into the weight of the keys, so it never computes the keys
    themselves. Its weight has the shape of an ``nn.Linear`` from tokens to keys. There is no bias:
    it would add one number to all scores of a query, and the softmax would ignore it.

    Args:
        embed_dims: channels of the tokens.
        attn_dims: channels of the keys.
    """

    def __init__(self, embed_dims: int, attn_dims: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(attn_dims, embed_dims))

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """Compute the scores.

        Args:
            x: ``(B, H, W, embed_dims)``.
            query: ``(num_queries, num_heads, attn_dims / num_heads)``.

        Returns:
            ``(B, H, W, num_queries * num_heads)``.
        """
        weight = self.weight.unflatten(0, query.shape[1:])
        return linear(x, torch.einsum("lhd,hdc->lhc", query, weight).flatten(0, 1))

    def extra_repr(self) -> str:
        return "{1}, {0}".format(*self.weight.shape)


class LearnedQueries(Unscripted, nn.Module):
    """Base of :class:`~mmlocal.layers.QnA` and :class:`~mmlocal.layers.UpsampleQnA`.

    It computes scores, values and tables from tokens. A subclass arranges the output of the
    queries. The subclasses describe the arguments.
    """

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
        self.dilation = 1
        self.normalize_query = normalize_query
        self.detach_query_norm = detach_query_norm
        self.scale_pos_embed = scale_pos_embed
        self.attn_scale = attn_scale
        self.backend = backend

        self.query = nn.Parameter(torch.empty(num_queries, attn_dims))
        self.key = QueryScores(embed_dims, attn_dims)
        self.value = Linear(embed_dims, attn_dims, bias=qkv_bias)
        self.proj = Linear(attn_dims, out_dims, bias=qkv_bias)

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
        for weight in (self.key.weight, self.value.weight, self.proj.weight):
            lecun_normal_(weight)
        for bias in (self.value.bias, self.proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        nn.init.zeros_(self.rel_pos_table)
        if self.attn_scale == "ones":
            nn.init.ones_(self.attn_scale_table)
        elif self.attn_scale in ("normal", "normal_elementwise"):
            nn.init.normal_(self.attn_scale_table, std=0.02)

    def _queries(self) -> Tensor:
        """Scaled queries, ``(num_queries, num_heads, head_dims)``."""
        query = self.query.unflatten(1, (self.num_heads, -1))
        if self.normalize_query:
            norm = query.norm(dim=2, keepdim=True)
            query = query / ((norm.detach() if self.detach_query_norm else norm) + 1e-6)
        return query * query.shape[2] ** -0.5

    def _scores(self, x: Tensor, query: Tensor, mask: Tensor | None) -> Tensor:
        """Scores of all tokens, ``(B, num_queries * num_heads, H, W)``."""
        scores = self.key(x, query).permute(0, 3, 1, 2)
        return scores if mask is None else scores.masked_fill(mask[:, None], float("-inf"))

    def _rel_pos(self) -> Tensor:
        """Position bias, ``(num_queries * num_heads, kernel_size, kernel_size)``."""
        bias = self.rel_pos_table.t()
        if self.scale_pos_embed:
            bias = bias * (self.query.shape[1] // self.num_heads) ** -0.5
        return bias.reshape(-1, self.kernel_size, self.kernel_size)

    def _attn_scale(self) -> Tensor | None:
        """Weights of the maps, ``(num_queries * num_heads, kernel_size, kernel_size)``."""
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
        return qna_attention(
            self.value(x).permute(0, 3, 1, 2),
            self._scores(x, self._queries(), mask),
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
        """Compute how each window attends to its tokens, before ``attn_scale``, to draw it.

        Args:
            x: ``(B, H, W, embed_dims)``.
            mask: ``(B, H, W)`` bool, true for tokens that no window may see.

        Returns:
            ``(B, num_queries, num_heads, kernel_size**2, H_out, W_out)``.

        Raises:
            ValueError: ``x`` or ``mask`` has another shape, or ``mask`` another dtype.
        """
        self._check_input(x, mask)
        return attention_maps(
            self._scores(x, self._queries(), mask),
            self._rel_pos(),
            self.num_queries,
            self.kernel_size,
            self.stride,
            self.padding,
        )

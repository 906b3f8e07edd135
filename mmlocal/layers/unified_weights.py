"""Tables, normalisation and ghost head of the unified local attention, for all its regions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from mmlocal.layers.filter_norm import filter_norm
from mmlocal.layers.ghost_head import GhostHead

TERMS = ("qk", "qr", "rk", "rb")
NORMS = ("softmax", "filter", "identity")


class LocalWeights(nn.Module):
    """Base of the regions of :class:`~mmlocal.layers.UnifiedLocalAttention`.

    The embeddings ``rk`` and ``rq`` and the bias ``rb`` are tables with one row for each offset
    from query to key. Only the terms in use have one.

    Args:
        embed_dims: channels of queries, keys and values. Each head has an equal share, in order.
        num_heads: must divide ``embed_dims``.
        terms: some of ``TERMS``.
        norm: one of ``NORMS``.
        qk_scale: factor of the products ``q.k``, ``q.rk`` and ``rq.k``.
        num_taps: number of keys of a query.
        num_offsets: number of offsets from query to key.
        lam: exponent of the multiplicative ghost head; 0 for none.
        gamma: factor of the additive ghost head; 0 for none.
        ghost_ratio: number of maps that the ghost head makes of each head's map.
        drop_rate: dropout on the maps, before the ghost head.

    Raises:
        ValueError: filter normalisation of one tap, or ``ghost_ratio`` does not divide the
            channels of a head.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        terms: Sequence[str],
        norm: str,
        qk_scale: float,
        num_taps: int,
        num_offsets: int,
        lam: float,
        gamma: float,
        ghost_ratio: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        if norm == "filter" and num_taps == 1:
            raise ValueError("norm='filter' needs at least 2 taps, got a region of one token")
        self.num_heads = num_heads
        self.terms = tuple(terms)
        self.norm = norm
        self.qk_scale = qk_scale
        self.attn_drop = nn.Dropout(drop_rate)
        std = 0.02 if norm == "softmax" else num_taps**-0.5

        def table(dims: int) -> nn.Parameter:
            return nn.Parameter(nn.init.trunc_normal_(torch.empty(num_offsets, dims), std=std))

        self.relative_position_key_table = table(embed_dims) if "qr" in terms else None
        self.relative_position_query_table = table(embed_dims) if "rk" in terms else None
        self.relative_position_bias_table = table(num_heads) if "rb" in terms else None
        self.ghost_head = None
        if lam != 0 or gamma != 0:
            if embed_dims // num_heads % ghost_ratio:
                raise ValueError(
                    f"ghost_ratio must divide the {embed_dims // num_heads} channels of a head, "
                    f"got {ghost_ratio}"
                )
            self.ghost_head = GhostHead(num_heads * ghost_ratio, num_offsets, lam, gamma)

    def normalise(self, scores: Tensor, dim: int) -> Tensor:
        """Turn scores into weights. Dimension ``dim`` holds the keys of a query."""
        if self.norm == "softmax":
            return scores.softmax(dim)
        if self.norm == "filter":
            return filter_norm(scores, dim) * scores.shape[dim] ** -0.5
        return scores

    def extra_repr(self) -> str:
        return f"terms={self.terms}, norm={self.norm!r}, num_heads={self.num_heads}"


def sum_terms(terms: Sequence[Tensor]) -> Tensor:
    """Add the terms of a score. The dtype is the first one's, so a bias changes no dtype."""
    return reduce(torch.add, [term.to(terms[0].dtype) for term in terms])

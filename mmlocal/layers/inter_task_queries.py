"""Learned queries that read the pyramids of all tasks, for tasks whose output is no map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_heads
from mmlocal.layers.checks import Unscripted, check_int, check_rate
from mmlocal.layers.deformable_attention import DeformableAttention

# The pixels of all maps, (B, S, C), and the height and width of each map.
Pyramid = tuple[Tensor, Sequence[tuple[int, int]]]


class InterTaskQueryLayer(Unscripted, nn.Module):
    """One layer of queries: self-attention, deformable attention to all maps, and an FFN.

    Each part has a residual connection and a layer norm behind it. The positions of the queries are
    added to queries and keys, and not to values.

    Args:
        embed_dims: channels of queries and maps.
        num_maps: number of maps: tasks times levels.
        num_heads: heads of both attentions; must divide ``embed_dims``.
        num_points: positions per query, head and map.
        dropout: rate of the dropout behind each part.
        offset_grad_scale: see :class:`~mmlocal.layers.DeformableAttention`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_maps: int,
        num_heads: int = 4,
        num_points: int = 4,
        dropout: float = 0.0,
        offset_grad_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(
            embed_dims, num_heads, dropout=dropout, batch_first=True
        )
        self.attention = DeformableAttention(
            embed_dims,
            num_heads,
            num_maps=num_maps,
            num_points=num_points,
            offset_grad_scale=offset_grad_scale,
        )
        self.ffn = nn.Sequential(
            nn.Linear(embed_dims, 4 * embed_dims),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * embed_dims, embed_dims),
        )
        self.dropout = nn.Dropout(dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self, query: Tensor, positions: Tensor, reference_points: Tensor, pyramid: Pyramid
    ) -> Tensor:
        """Refine the queries.

        Args:
            query: ``(B, Q, embed_dims)``.
            positions: position of each query, of the same shape.
            reference_points: ``(B, Q, 1, 2)``, x and y as fractions of the width and height.
            pyramid: maps of all tasks.

        Returns:
            ``(B, Q, embed_dims)``.
        """
        after_self, after_maps, after_ffn = self.norms
        own = query + positions
        query = after_self(query + self.dropout(self.self_attention(own, own, query)[0]))
        value, shapes = pyramid
        read = self.attention(query + positions, value, reference_points, shapes)
        query = after_maps(query + self.dropout(read))
        return after_ffn(query + self.dropout(self.ffn(query)))


class InterTaskQueries(Unscripted, nn.Module):
    """Queries with learned reference points, one layer for each pyramid of an inter-task block.

    A task whose output is no map, such as the detection of objects, joins the exchange among tasks
    by these queries. Layer ``i`` reads the pyramids that step ``i`` of
    :class:`~mmlocal.layers.InterTaskBlock` makes of the maps of the other tasks.

    Args:
        embed_dims: channels of queries and maps.
        num_maps: number of maps: tasks times levels.
        num_layers: number of layers, which is the number of steps of the block.
        num_queries: number of queries.
        num_heads: heads of both attentions; must divide ``embed_dims``.
        num_points: positions per query, head and map.
        dropout: rate of the dropout behind each part of a layer.
        offset_grad_scale: see :class:`~mmlocal.layers.DeformableAttention`.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, a count is below 1, or ``dropout``
            is out of [0, 1].
        TypeError: an argument has another type.

    Note:
        The source names tasks other than dense ones as its limit. So this class has no source.
        Layers and reference points follow Deformable DETR, whose queries read the levels of one
        pyramid.

    Source:
        Deformable DETR, Zhu et al. 2021, section 4.
    """

    def __init__(
        self,
        embed_dims: int,
        num_maps: int,
        num_layers: int = 3,
        num_queries: int = 100,
        num_heads: int = 4,
        num_points: int = 4,
        dropout: float = 0.0,
        offset_grad_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_maps=num_maps, num_layers=num_layers)
        check_int(num_queries=num_queries, num_heads=num_heads, num_points=num_points)
        check_rate(dropout=dropout)
        check_heads(embed_dims, num_heads)
        self.embed_dims = embed_dims
        self.query = nn.Embedding(num_queries, embed_dims)
        self.positions = nn.Embedding(num_queries, embed_dims)
        self.reference_points = nn.Linear(embed_dims, 2)
        self.layers = nn.ModuleList(
            InterTaskQueryLayer(
                embed_dims, num_maps, num_heads, num_points, dropout, offset_grad_scale
            )
            for _ in range(num_layers)
        )
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, pyramids: Sequence[Pyramid]) -> tuple[Tensor, Tensor]:
        """Read one pyramid after the other.

        Args:
            pyramids: the maps of all tasks before each step: their pixels, one map after the other,
                ``(B, S, embed_dims)``, and the height and width of each of the ``num_maps`` maps.

        Returns:
            The queries after each layer, ``(num_layers, B, num_queries, embed_dims)``, and the
            reference points ``(B, num_queries, 2)``, x and y as fractions of the width and height.

        Raises:
            ValueError: the number of pyramids is not the number of layers, or a pyramid has another
                number of maps or channels.
        """
        if len(pyramids) != len(self.layers):
            raise ValueError(
                f"pyramids must have one entry for each of the {len(self.layers)} layers, got "
                f"{len(pyramids)}"
            )
        batch = pyramids[0][0].shape[0]
        query = self.query.weight.expand(batch, -1, -1)
        positions = self.positions.weight.expand(batch, -1, -1)
        reference_points = self.reference_points(positions).sigmoid()
        states = []
        for layer, pyramid in zip(self.layers, pyramids, strict=True):
            query = layer(query, positions, reference_points[:, :, None], pyramid)
            states.append(query)
        return torch.stack(states), reference_points

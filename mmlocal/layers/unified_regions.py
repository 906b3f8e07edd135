"""The two regions of the unified local attention: windows and neighbourhoods."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.layers.unified_weights import LocalWeights, sum_terms
from mmlocal.layers.window_msa import relative_position_index
from mmlocal.ops import elsa_attention, neighborhood_scores


class WindowWeights(LocalWeights):
    """Attention among the tokens of one window.

    Args:
        window_size: width of the largest window, in tokens.
        **kwargs: arguments of the base, but not the number of taps and offsets.
    """

    relative_position_index: Tensor

    def __init__(self, window_size: int, **kwargs: Any) -> None:
        super().__init__(num_taps=window_size**2, num_offsets=(2 * window_size - 1) ** 2, **kwargs)
        index = relative_position_index((window_size, window_size))
        self.register_buffer("relative_position_index", index, persistent=False)

    def scores(self, query: Tensor | None, key: Tensor | None, index: Tensor) -> Tensor:
        """Compare all tokens of a window with each other.

        Args:
            query: ``(windows, num_heads, N, head_dims)``; ``None`` if no term needs it.
            key: ``(windows, num_heads, N, head_dims)``; ``None`` if no term needs it.
            index: ``(N, N)``, int64, row of the tables for each query and key.

        Returns:
            ``(windows, num_heads, N, N)``. ``windows`` is 1 without a query and a key.
        """
        terms = []
        if query is not None:
            query = query * self.qk_scale
        if query is not None and key is not None and "qk" in self.terms:
            terms.append(query @ key.transpose(2, 3))
        if query is not None and (table := self.relative_position_key_table) is not None:
            pairs = table[index].unflatten(2, (self.num_heads, -1))
            terms.append(torch.einsum("whid,ijhd->whij", query, pairs))
        if key is not None and (table := self.relative_position_query_table) is not None:
            pairs = self.qk_scale * table[index].unflatten(2, (self.num_heads, -1))
            terms.append(torch.einsum("whjd,ijhd->whij", key, pairs))
        if (table := self.relative_position_bias_table) is not None:
            terms.append(table[index].permute(2, 0, 1)[None])
        return sum_terms(terms)

    def forward(
        self,
        query: Tensor | None,
        key: Tensor | None,
        value: Tensor,
        size: tuple[int, int],
        mask: Tensor | None,
    ) -> Tensor:
        """Attend.

        Args:
            query: ``(B * windows, N, embed_dims)``; ``None`` if no term needs it.
            key: ``(B * windows, N, embed_dims)``; ``None`` if no term needs it.
            value: ``(B * windows, N, embed_dims)``.
            size: height and width of these windows, with N tokens.
            mask: ``(windows, N, N)``: 0 inside a region of the map, -100 between regions.

        Returns:
            ``(B * windows, N, embed_dims)``.
        """
        query, key = (
            None if part is None else part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in (query, key)
        )
        height, width = size
        index = self.relative_position_index[:height, :width, :height, :width]
        index = index.reshape(height * width, height * width)
        scores = self.scores(query, key, index).expand(value.shape[0], -1, -1, -1)
        if mask is not None:
            mask = mask[:, None].repeat(value.shape[0] // mask.shape[0], 1, 1, 1)
            if self.norm == "softmax":
                scores = scores + mask.to(scores.dtype)
        maps = self.attn_drop(self.normalise(scores, 3))
        if self.ghost_head is not None:
            maps = self.ghost_head(maps, index)
        if mask is not None and (self.norm != "softmax" or self.ghost_head is not None):
            maps = maps * (mask == 0)
        value = value.unflatten(2, (maps.shape[1], -1)).transpose(1, 2)
        return (maps.to(value.dtype) @ value).transpose(1, 2).flatten(2)


class NeighborhoodWeights(LocalWeights):
    """Attention to the tokens around each query.

    Args:
        kernel_size: odd width of the neighbourhood, in taps. Taps are in row-major order.
        dilation: distance between taps, in pixels.
        backend: name of a backend of the ops.
        **kwargs: arguments of the base, but not the number of taps and offsets.
    """

    def __init__(self, kernel_size: int, dilation: int, backend: str | None, **kwargs: Any) -> None:
        super().__init__(num_taps=kernel_size**2, num_offsets=kernel_size**2, **kwargs)
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = kernel_size // 2 * dilation
        self.settings: dict[str, Any] = dict(
            kernel_size=kernel_size, dilation=dilation, backend=backend
        )

    def scores(self, query: Tensor | None, key: Tensor | None) -> Tensor:
        """Compare queries with the keys around them. Keys are 0 outside the map.

        Args:
            query: ``(B, embed_dims, H, W)``; ``None`` if no term needs it.
            key: ``(B, embed_dims, H, W)``; ``None`` if no term needs it.

        Returns:
            ``(B, num_heads, taps, H, W)``. B, H and W are 1 without a query and a key.
        """
        terms = []
        if query is not None:
            query = query * self.qk_scale
        if query is not None and key is not None and "qk" in self.terms:
            settings = dict(self.settings, num_heads=self.num_heads)
            terms.append(neighborhood_scores(query, key, **settings))
        if query is not None and (table := self.relative_position_key_table) is not None:
            terms.append(self._products(query, table))
        if key is not None and (table := self.relative_position_query_table) is not None:
            scores = self._products(F.pad(key, 4 * (self.padding,)), self.qk_scale * table)
            terms.append(from_keys_to_queries(scores, self.kernel_size, self.dilation))
        if (table := self.relative_position_bias_table) is not None:
            terms.append(table.T.reshape(1, -1, 1, 1))
        return sum_terms(terms).unflatten(1, (self.num_heads, -1))

    def _products(self, x: Tensor, table: Tensor) -> Tensor:
        """Multiply each row of a table with each pixel: ``(B, num_heads * rows, H, W)``."""
        weight = table.unflatten(1, (self.num_heads, -1)).transpose(0, 1).flatten(0, 1)
        return F.conv2d(x, weight[:, :, None, None], groups=self.num_heads)

    def forward(self, query: Tensor | None, key: Tensor | None, value: Tensor) -> Tensor:
        """Attend.

        Args:
            query: ``(B, embed_dims, H, W)``; ``None`` if no term needs it.
            key: ``(B, embed_dims, H, W)``; ``None`` if no term needs it.
            value: ``(B, embed_dims, H, W)``. Zero outside the map.

        Returns:
            ``(B, embed_dims, H, W)``.
        """
        scores = self.scores(query, key)
        dropout = self.training and self.attn_drop.p > 0
        if query is None and key is None:
            if not dropout:
                return self._convolve(value, self.normalise(scores[0, :, :, 0, 0], 1))
            scores = scores.expand(value.shape[0], -1, -1, *value.shape[2:])
        softmax = self.norm == "softmax" and not dropout
        if not softmax:
            scores = self.attn_drop(self.normalise(scores, 2))
        ghosts: dict[str, Any] = {}
        if (ghost := self.ghost_head) is not None:
            tables = dict(ghost_mul=ghost.mul, ghost_add=ghost.add)
            ghosts = {
                name: None if table is None else self._filters(table, value)
                for name, table in tables.items()
            }
            ghosts.update(lam=ghost.lam, gamma=ghost.gamma)
        return elsa_attention(
            value, scores.flatten(1, 2), **ghosts, **self.settings, softmax=softmax
        )

    def _convolve(self, value: Tensor, maps: Tensor) -> Tensor:
        """Use the same maps ``(num_heads, taps)`` at all pixels."""
        if self.ghost_head is not None:
            maps = self.ghost_head(maps, torch.arange(maps.shape[1], device=maps.device))
        filters = self._filters(maps, value)[:, None].to(value.dtype)
        return F.conv2d(
            value,
            filters,
            padding=self.padding,
            dilation=self.dilation,
            groups=value.shape[1],
        )

    def _filters(self, maps: Tensor, value: Tensor) -> Tensor:
        """Repeat maps ``(maps, taps)`` to one for each channel, ``(embed_dims, k, k)``."""
        filters = maps.repeat_interleave(value.shape[1] // maps.shape[0], dim=0)
        return filters.unflatten(1, (self.kernel_size, self.kernel_size))


def from_keys_to_queries(scores: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Move the score of each tap from the pixel of its key to the pixel of the query.

    Args:
        scores: ``(B, heads * kernel_size**2, H + 2 * reach, W + 2 * reach)`` of a padded map, with
            ``reach = kernel_size // 2 * dilation``.
        kernel_size: odd width of the neighbourhood, in taps.
        dilation: distance between taps, in pixels.

    Returns:
        ``(B, heads * kernel_size**2, H, W)``. Tap ``(i, j)`` of pixel ``(y, x)`` was at
        ``(y + i * dilation, x + j * dilation)``.
    """
    # Two skews do it without a copy for each tap: along the columns, and along the rows.
    rows, columns = scores.shape[2:]
    taps = _skew(scores.flatten(2).unflatten(1, (-1, kernel_size)), dilation)
    size = taps.shape[3]
    taps = _skew(taps.flatten(2).unflatten(1, (-1, kernel_size)), dilation * columns)
    taps = taps[..., : kernel_size * size].unflatten(3, (kernel_size, size))
    taps = taps[..., : rows * columns].unflatten(4, (rows, columns))
    reach = kernel_size // 2 * dilation
    return taps[..., : rows - 2 * reach, : columns - 2 * reach].flatten(1, 3)


def _skew(x: Tensor, step: int) -> Tensor:
    """Move row ``i`` of a matrix ``(..., rows, size)`` to the left by ``i * step``.

    The result has ``step`` more columns. Behind the end of a row, it holds the next row.
    """
    rows, size = x.shape[-2:]
    return F.pad(x.flatten(-2), (0, rows * step)).unflatten(-1, (rows, size + step))

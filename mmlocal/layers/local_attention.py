"""Protocols by which a layer offers its local attention for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class HasLocalAttention(Protocol):
    """A layer on ``(B, H, W, C)`` whose attention can be drawn. It need not inherit from this.

    Tap ``(a, b)`` of the window ``(i, j)`` is the token in row
    ``i * stride - padding + a * dilation`` and column ``j * stride - padding + b * dilation``.
    Some taps lie outside the map.

    Args:
        kernel_size: width of a window, in taps.
        stride: distance between windows, in tokens.
        padding: number of tokens by which the first window sticks out of the map.
        dilation: distance between taps, in tokens.
    """

    kernel_size: int
    stride: int
    padding: int
    dilation: int

    def attention_maps(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute how each window attends to its taps.

        Args:
            x: ``(B, H, W, C)``, the input of ``forward``.
            *args: the other arguments of ``forward``.
            **kwargs: the other arguments of ``forward``.

        Returns:
            ``(B, num_heads, kernel_size**2, H_out, W_out)``, or
            ``(B, num_queries, num_heads, kernel_size**2, H_out, W_out)``. Taps are in row-major
            order.
        """
        ...


@runtime_checkable
class HasGhostHead(HasLocalAttention, Protocol):
    """A layer that turns its attention into one filter for each channel of its values.

    Args:
        v_dims: channels of the values. Each head has an equal share of them, in order.
    """

    v_dims: int

    def ghost_filters(self, attn: Tensor, channels: Sequence[int]) -> Tensor:
        """Compute the filters of some channels.

        Args:
            attn: ``(..., heads, kernel_size**2, H, W)``, float: attention maps of all heads, or of
                the first ones.
            channels: channels of the values. They must belong to the heads of ``attn``.

        Returns:
            ``(..., len(channels), kernel_size**2, H, W)``, dtype of ``attn``.
        """
        ...


@runtime_checkable
class HasWindowAttention(Protocol):
    """A layer on ``(B, H, W, C)`` whose positions share windows, and whose attention can be drawn.

    The taps of a position are a grid of rows and columns, such as the window that it is in. In
    contrast to :class:`HasLocalAttention`, taps need not move with the position.
    """

    def attention_taps(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Compute which tokens each position of the output may read.

        Args:
            height: height of the layer's input, in tokens.
            width: width of the layer's input, in tokens.

        Returns:
            Rows ``(H_out, window height)`` and columns ``(W_out, window width)``, int64. Tap
            ``(a, b)`` of position ``(i, j)`` is the token in row ``rows[i, a]`` and column
            ``columns[j, b]``. It is -1 where the tap lies outside the map or is hidden.
        """
        ...

    def attention_maps(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute how each position attends to its taps.

        Args:
            x: ``(B, H, W, C)``, the input of ``forward``.
            *args: the other arguments of ``forward``.
            **kwargs: the other arguments of ``forward``.

        Returns:
            ``(B, num_heads, taps, H_out, W_out)``, or
            ``(B, num_queries, num_heads, taps, H_out, W_out)``. Taps are in row-major order.
        """
        ...


@runtime_checkable
class HasQueryPlaces(Protocol):
    """A layer whose queries write to different places. Otherwise all of them write to one.

    Args:
        query_places: ``"taps"``: each window has a query for each of its taps, which writes to that
            tap, and the results of windows add up. ``"cells"``: each window has
            ``scale * scale`` queries, and fills a cell of as many positions in row-major order.
    """

    query_places: Literal["taps", "cells"]


def window_taps(size: int, window: int, shift: int = 0) -> Tensor:
    """Compute which rows share a window with each row; or columns, in the same way.

    Args:
        size: number of rows of the map.
        window: height of a window. The map is padded at the bottom to a multiple of it.
        shift: number of rows by which the windows are shifted, in a cycle. Parts of the map that
            only the cycle brings together do not see each other.

    Returns:
        ``(size, window)``, int64; -1 for padding and for hidden rows.
    """
    padded = -(-size // window) * window
    place = (torch.arange(size)[:, None] - shift) % padded  # in the shifted map
    taps = place // window * window + torch.arange(window)
    hidden = (taps >= padded - shift) != (place >= padded - shift)
    rows = (taps + shift) % padded
    return rows.masked_fill(hidden | (rows >= size), -1)

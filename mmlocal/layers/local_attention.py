"""Protocols by which a layer offers its local attention for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

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

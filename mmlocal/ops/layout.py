"""The memory format of outputs and gradients: one rule for all backends and for fake tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def is_channels_last(like: Tensor) -> bool:
    """Return whether ``like`` ``(B, C, H, W)`` is channels-last, or a slice of such a map.

    The channels of a pixel then lie side by side in memory. A contiguous map does not count.
    """
    return like.stride(1) == 1 and not like.is_contiguous()


def new_map(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an empty, dense ``(..., C, H, W)`` in the dtype and memory format of ``like``.

    The channels are innermost if they are innermost in ``like``. Otherwise the map is contiguous.
    """
    if not is_channels_last(like):
        return like.new_empty(shape)
    *lead, channels, height, width = shape
    return like.new_empty((*lead, height, width, channels)).movedim(-1, -3)


def to_layout(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` ``(..., C, H, W)`` in the dtype and memory format of ``new_map(like, x.shape)``.

    ``x`` is copied only if it has another dtype or format.
    """
    # contiguous() would not do: it leaves odd strides of dimensions of size 1 as they are.
    dims = list(range(x.dim()))
    if is_channels_last(like):
        dims.append(dims.pop(-3))
    expected, step = [0] * x.dim(), 1
    for dim in reversed(dims):
        expected[dim] = step
        step *= x.shape[dim]
    if x.dtype == like.dtype and x.numel() and x.stride() == tuple(expected):
        return x
    return new_map(like, x.shape).copy_(x)

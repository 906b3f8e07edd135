"""The memory format of what the ops return: one rule for all backends and for fake tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def is_channels_last(like: Tensor) -> bool:
    """Whether the channels of a pixel of ``like`` ``(B, C, H, W)`` lie side by side in memory, as
    those of a slice of a channels-last map do, and it is not plainly contiguous."""
    return like.stride(1) == 1 and not like.is_contiguous()


def new_map(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty ``(..., C, H, W)`` in the dtype and memory format of ``like``: dense, with the
    channels innermost if they are so in ``like``, contiguous otherwise."""
    if not is_channels_last(like):
        return like.new_empty(shape)
    *lead, channels, height, width = shape
    return like.new_empty((*lead, height, width, channels)).movedim(-1, -3)


def to_layout(x: Tensor, like: Tensor) -> Tensor:
    """``x`` ``(..., C, H, W)`` in the dtype of ``like`` and the memory format that ``new_map`` has;
    copied if need be."""
    # Not contiguous(), which leaves odd strides of dimensions of size 1 as they are.
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

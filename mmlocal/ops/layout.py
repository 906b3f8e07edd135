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
    """``x`` ``(..., C, H, W)`` in the memory format that ``new_map`` has; copied if need be."""
    if not is_channels_last(like):
        return x.contiguous()
    return x.movedim(-3, -1).contiguous().movedim(-1, -3)

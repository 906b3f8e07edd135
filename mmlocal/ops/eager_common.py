"""Shared by the eager backends: the samples to work on together, and the taps of windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

# Elements of a temporary map that stay in the cache of one CPU core.
CPU_CHUNK = 2**17


def chunks(value: Tensor) -> list[slice]:
    """Samples to work on together. On a CPU, their temporary map stays in its cache.

    Args:
        value: ``(B, ...)``. The temporary map has its size.
    """
    batch = value.shape[0]
    size = batch
    if value.device.type == "cpu":
        size = max(1, CPU_CHUNK // max(1, value[:1].numel()))
    return [slice(i, i + size) for i in range(0, batch, max(1, size))]


def taps_inside(
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    map_size: Sequence[int],
    size: Sequence[int],
) -> list[tuple[int, tuple, tuple]]:
    """Return the taps that lie inside the map for some window.

    Args:
        kernel_size: side of a window.
        stride: step between windows.
        padding: tokens by which the first window begins outside the map.
        dilation: step between the taps of a window.
        map_size: height and width of the map.
        size: rows and columns of windows.

    Returns:
        For each tap: its index in row-major order, the windows that have it inside the map, and
        their tokens at this tap. The last two index tensors ``(..., H, W)``.
    """

    def along(tokens: int, windows: int) -> Iterator[tuple[int, slice, slice]]:
        for index in range(kernel_size):
            shift = index * dilation - padding
            first = max(0, -(shift // stride))
            last = min(windows - 1, (tokens - 1 - shift) // stride)
            if first <= last:
                start, stop = (i * stride + shift for i in (first, last))
                yield index, slice(first, last + 1), slice(start, stop + 1, stride)

    return [
        (i * kernel_size + j, (..., own_rows, own_cols), (..., rows, cols))
        for i, own_rows, rows in along(map_size[0], size[0])
        for j, own_cols, cols in along(map_size[1], size[1])
    ]

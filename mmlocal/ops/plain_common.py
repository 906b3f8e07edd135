"""Shared by the plain forms, which are made of operators that ONNX has.

A plain form is a loop over the taps that PyTorch unrolls. A tap is a part of a padded map. Sizes
may be symbols, so no form asks how large a map is. Each node costs PyTorch's exporter some
milliseconds, so the forms have few nodes for each tap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def computation_dtype(x: Tensor) -> torch.dtype:
    """Return float64 for float64, and float32 for all else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def pad_sides(x: Tensor, width: int, fill: float = 0.0) -> Tensor:
    """Pad the four sides of ``(..., H, W)`` by ``width`` pixels."""
    return F.pad(x, (width,) * 4, value=fill) if width else x


def pad_windows(
    x: Tensor,
    kernel_size: int,
    size: Sequence[int],
    *,
    stride: int,
    padding: int,
    fill: float = 0.0,
) -> Tensor:
    """Pad a map, or cut it at the bottom and right, so that it holds the windows and no more.

    Args:
        x: ``(..., H, W)``.
        kernel_size: side of a window.
        size: rows and columns of windows.
        stride: step between windows.
        padding: pixels by which the first window begins outside the map.
        fill: value outside the map.
    """
    if stride == 1:
        return pad_sides(x, padding, fill)
    below, right = (
        (windows - 1) * stride + kernel_size - side - padding
        for windows, side in zip(size, x.shape[-2:], strict=True)
    )
    return F.pad(x, (padding, right, padding, below), value=fill)


def taps_of(
    padded: Tensor, kernel_size: int, *, stride: int = 1, dilation: int = 1
) -> Iterator[Tensor]:
    """Go through the taps of all windows, in row-major order.

    All numbers of the slices are plain, so that sizes stay what they are, and ONNX needs no nodes
    to compute them.

    Args:
        padded: ``(..., H, W)``, which holds the windows and no more.
        kernel_size: side of a window.
        stride: step between windows.
        dilation: step between the taps of a window; 1 unless ``stride`` is 1.

    Yields:
        The tap of each window, ``(..., rows, columns)``.
    """
    steps = range(0, kernel_size * dilation, dilation)
    end = steps[-1]
    for top in steps:
        if stride > 1:
            rows = padded[..., top : (top - end) or None : stride, :]
        for left in steps:
            if stride > 1:
                yield rows[..., left : (left - end) or None : stride]
            else:  # one node in place of two
                yield F.pad(padded, (-left, left - end, -top, top - end))


def sum_of_products(pairs: Iterable[tuple[Tensor, Tensor]], total: Tensor | None = None) -> Tensor:
    """Multiply the tensors of each pair, and add the products one by one, from ``total`` on."""
    for first, other in pairs:
        total = first * other if total is None else torch.addcmul(total, first, other)
    assert total is not None
    return total


def entries(x: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Split a dimension into its entries, which keep it with the size 1."""
    return x.split(1, dim)

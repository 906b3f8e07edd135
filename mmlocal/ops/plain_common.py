"""Shared by the plain forms, which are made of operators that ONNX has.

A plain form is a loop over the taps that PyTorch unrolls. A tap is a part of a padded map. Sizes
may be symbols, so no form asks how large a map is. Each node costs PyTorch's exporter some
milliseconds, so the forms have few nodes for each tap.
"""

from __future__ import annotations

import itertools
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


def taps_of(
    padded: Tensor, kernel_size: int, size: Sequence[int], *, stride: int = 1, dilation: int = 1
) -> Iterator[Tensor]:
    """Go through the taps of all windows, in row-major order.

    Args:
        padded: ``(..., H, W)``, where the first window begins in the corner.
        kernel_size: side of a window.
        size: rows and columns of windows.
        stride: step between windows.
        dilation: step between the taps of a window.

    Yields:
        The tap of each window, ``(..., *size)``.
    """
    steps = range(0, kernel_size * dilation, dilation)
    if stride == 1:
        # To pad by a negative number is one node, and a slice of two sides would be two. It also
        # needs no symbols.
        end = steps[-1]
        for top, left in itertools.product(steps, repeat=2):
            yield F.pad(padded, (-left, left - end, -top, top - end))
        return
    height, width = ((n - 1) * stride + 1 for n in size)
    for top in steps:
        rows = padded[..., top : top + height : stride, :]
        for left in steps:
            yield rows[..., left : left + width : stride]


def sum_of_products(pairs: Iterable[tuple[Tensor, Tensor]], total: Tensor | None = None) -> Tensor:
    """Multiply the tensors of each pair, and add the products one by one, from ``total`` on."""
    for first, other in pairs:
        total = first * other if total is None else torch.addcmul(total, first, other)
    assert total is not None
    return total


def entries(x: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Split a dimension into its entries, which keep it with the size 1."""
    return x.split(1, dim)

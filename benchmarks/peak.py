"""The speed of plain matrix products, beside which the speed of a model stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

# Rows, columns and depth. A product of this size is far above the caches and the start of threads.
_SIDE = 1536
FLOPS = 2 * _SIDE**3


def matrix_products(like: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Make calls that multiply two large square matrices, by each way that PyTorch has.

    On CPUs, PyTorch gives ``mm`` to one library and convolutions to another, and either may be
    twice as fast as the other.

    Args:
        like: tensor whose dtype and device the matrices get.

    Returns:
        Name -> function. Each call takes ``FLOPS`` operations.
    """
    left, right = (torch.randn(_SIDE, _SIDE).to(like) for _ in range(2))
    # One row of pixels, channels last: the same memory as `left`.
    pixels = left.t()[None, :, None]
    kernel = right[:, :, None, None]

    def product() -> torch.Tensor:
        return torch.mm(left, right.t())

    def convolution() -> torch.Tensor:
        with torch.no_grad():
            return F.conv2d(pixels, kernel)

    return {"mm": product, "conv2d": convolution}


def peak_gflops(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Compute GFLOP/s of the calls of :func:`matrix_products` from their summarised times."""
    return {name: FLOPS / figure["median_ms"] / 1e6 for name, figure in figures.items()}

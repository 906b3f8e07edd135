"""Shared by the eager backends: the samples to work on together."""

from __future__ import annotations

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

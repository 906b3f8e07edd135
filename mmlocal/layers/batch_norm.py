"""Batch normalisation of maps: one clear error, and statistics that checkpointing leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise ``(B, C, H, W)`` by a batch norm.

    Args:
        norm: ``nn.BatchNorm2d``, or the ``nn.SyncBatchNorm`` that replaced it.
        x: ``(B, C, H, W)``.

    Returns:
        The same shape.

    Raises:
        ValueError: ``norm`` is in training mode and sees a single value per channel.
    """
    values = x.shape[0] * x.shape[2] * x.shape[3]
    if norm.training and isinstance(norm, nn.BatchNorm2d) and values == 1:
        raise ValueError(
            "batch normalization needs more than one value per channel in training, got one image "
            f"with a map of 1x1: x is {tuple(x.shape)}. Train with at least 2 images per process, "
            "with SyncBN in several processes, or with norm_eval=True"
        )
    return norm(x)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of all batch norms in ``module``, and normalise as before.

    A checkpointed block runs twice per step. Each batch may move the statistics only once.

    Args:
        module: owner of the batch norms.

    Yields:
        Nothing.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, BATCH_NORMS)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, number in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if number is None else number.clone()
    try:
        yield
    finally:
        for norm, momentum, number in kept:
            norm.momentum, norm.num_batches_tracked = momentum, number

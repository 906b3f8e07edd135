"""Filter normalisation: it gives each filter the mean 0 and the standard deviation 1."""

from __future__ import annotations

import torch
from torch import Tensor


def filter_norm(filters: Tensor, dim: int, eps: float = 1e-5) -> Tensor:
    """Compute ``(f - mean(f)) / std(f)`` for each filter ``f``, over its taps.

    Args:
        filters: any shape, float.
        dim: dimension of the taps, at least 2 of them.
        eps: a filter with a smaller standard deviation becomes 0 and passes no gradient.

    Returns:
        The shape and dtype of ``filters``. Half precision is computed in float32.

    Raises:
        ValueError: a filter has one tap, which has no standard deviation.

    Note:
        The standard deviation divides by the number of taps minus one, as in the official code.
        That code adds 1e-10 to it, where this function has ``eps``. Equal taps would then multiply
        the gradient by 1e10. In the official code, a constant or a learned factor follows. That
        factor belongs to the caller.

    Source:
        Decoupled Dynamic Filter Networks, Zhou et al. 2021, https://arxiv.org/abs/2104.14107;
        official code theFoxofSky/ddfnet.
    """
    if filters.shape[dim] < 2:
        raise ValueError(
            "filter normalisation needs at least 2 taps, got filters with "
            f"{filters.shape[dim]} in dimension {dim} of {tuple(filters.shape)}"
        )
    wide = filters if filters.dtype == torch.float64 else filters.float()
    std, mean = torch.std_mean(wide, dim, keepdim=True)
    return ((wide - mean) * ((std > eps) / std.clamp(min=eps))).to(filters.dtype)

"""Initialisers that torch.nn.init lacks."""

from __future__ import annotations

from torch import Tensor, nn

# Standard deviation of a unit normal cut at two standard deviations.
_CUT_STD = 0.87962566103423978


def lecun_normal_(weight: Tensor) -> Tensor:
    """Fill a linear or convolution weight with a normal, cut at 2 std, of variance 1 / fan-in.

    Flax's default, Klambauer et al. 2017.
    """
    std = weight[0].numel() ** -0.5 / _CUT_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

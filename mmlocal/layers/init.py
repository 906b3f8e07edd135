"""Initialisers that torch.nn.init lacks."""

from __future__ import annotations

from torch import Tensor, nn

# Standard deviation of a unit normal cut at two standard deviations.
_CUT_STD = 0.87962566103423978


def lecun_normal_(weight: Tensor) -> Tensor:
    """Fill a weight in place with a normal of variance 1 / fan-in, cut at two deviations.

    Args:
        weight: weight of a linear layer or a convolution, ``(out, in, ...)``, any float dtype.

    Returns:
        ``weight`` itself.

    Source:
        Klambauer et al. 2017. It is Flax's default.
    """
    std = weight[0].numel() ** -0.5 / _CUT_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

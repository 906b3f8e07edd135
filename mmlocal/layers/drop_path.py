"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn

from mmlocal.layers.checks import check_rate


class DropPath(nn.Module):
    """Drop the residual branch of some samples, and scale the others so that the mean is unchanged.

    Args:
        drop_prob: probability of dropping a sample's branch, in ``[0, 1)``.

    Raises:
        ValueError: ``drop_prob`` is out of range.
        TypeError: ``drop_prob`` is not a number.

    Source:
        Deep Networks with Stochastic Depth, Huang et al. 2016.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        check_rate(below_one=True, drop_prob=drop_prob)
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, ...)`` to the same shape. In eval mode, return ``x`` as it is."""
        if self.drop_prob == 0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"

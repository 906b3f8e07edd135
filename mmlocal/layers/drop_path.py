"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn

from mmlocal.layers.checks import check_drop_path


class DropPath(nn.Module):
    """Drop a residual branch per sample, and scale the kept ones so that the mean is unchanged.

    Args:
        drop_prob: probability of dropping, in ``[0, 1)``.

    Raises:
        ValueError: ``drop_prob`` out of range.
        TypeError: ``drop_prob`` is no number.

    Source:
        Deep Networks with Stochastic Depth, Huang et al. 2016.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        check_drop_path(drop_prob=drop_prob)
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Args and returns: ``(B, ...)``."""
        if self.drop_prob == 0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"

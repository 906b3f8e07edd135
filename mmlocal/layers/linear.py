"""Linear layers and 1x1 convolutions as modules."""

from __future__ import annotations

from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted
from mmlocal.ops.linear import linear, pointwise_conv2d


class Linear(Unscripted, nn.Linear):
    """``nn.Linear`` by :func:`mmlocal.ops.linear.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        return linear(input, self.weight, self.bias)


class PointwiseConv2d(Unscripted, nn.Conv2d):
    """``nn.Conv2d`` with a kernel of 1x1, by :func:`mmlocal.ops.linear.pointwise_conv2d`.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        bias: whether it has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        return pointwise_conv2d(input, self.weight, self.bias)

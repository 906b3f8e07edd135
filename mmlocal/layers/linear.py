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
    """``nn.Conv2d``, by :func:`mmlocal.ops.linear.pointwise_conv2d` if its kernel is 1x1."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, rows, columns)``."""
        if not self._is_pointwise():
            return super().forward(input)
        return pointwise_conv2d(input, self.weight, self.bias)

    def _is_pointwise(self) -> bool:
        ones = self.kernel_size == self.stride == self.dilation == (1, 1)
        return ones and self.padding == (0, 0) and self.groups == 1

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
    """``nn.Conv2d``, by :func:`mmlocal.ops.linear.pointwise_conv2d` if its kernel is 1x1.

    With a stride, a CPU first takes the pixels that count, and the output is channels-last.
    oneDNN's gradient of the strided convolution writes beyond its memory if a channels-last map has
    fewer channels than a vector has numbers: 16 with AVX-512, 8 with AVX2
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, rows, columns)``."""
        if not self._is_pointwise():
            return super().forward(input)
        if self.stride != (1, 1):
            if input.device.type != "cpu":
                return super().forward(input)
            rows, columns = self.stride
            pixels = input.movedim(-3, -1)[..., ::rows, ::columns, :].contiguous()
            input = pixels.movedim(-1, -3)
        return pointwise_conv2d(input, self.weight, self.bias)

    def _is_pointwise(self) -> bool:
        is_padded = self.padding not in ((0, 0), "valid")
        return self.kernel_size == (1, 1) and not is_padded and self.groups == 1

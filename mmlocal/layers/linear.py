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

    With a stride, a CPU first takes the pixels that count. oneDNN's gradient of the strided
    convolution writes beyond its memory if a channels-last map has fewer channels than a vector: 16
    with AVX-512, 8 with AVX2 (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, rows, columns)``."""
        strided = self.stride != (1, 1)
        if not self._is_pointwise() or (
            strided and (input.device.type != "cpu" or input.dim() != 4)
        ):
            return super().forward(input)
        if strided:
            rows, columns = self.stride
            pixels = input.permute(0, 2, 3, 1)[:, ::rows, ::columns].contiguous()
            input = pixels.permute(0, 3, 1, 2)
        return pointwise_conv2d(input, self.weight, self.bias)

    def _is_pointwise(self) -> bool:
        ones = self.kernel_size == self.dilation == (1, 1)
        return ones and self.padding == (0, 0) and self.groups == 1

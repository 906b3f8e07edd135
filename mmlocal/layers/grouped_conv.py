"""A convolution with narrow groups, computed by the faster library."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted
from mmlocal.ops import grouped_conv2d
from mmlocal.ops.convolution import GROUP_WIDTH


class GroupedConv2d(Unscripted, nn.Conv2d):
    """``nn.Conv2d``, by :func:`mmlocal.ops.grouped_conv2d` where that is faster.

    The op computes maps on CPUs, in groups of 4 channels, with stride 1, a square kernel and zeros
    around the map. PyTorch computes all others.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, rows, columns)``."""
        if not self._by_op(input):
            return super().forward(input)
        return grouped_conv2d(
            input,
            self.weight,
            self.bias,
            padding=int(self.padding[0]),
            dilation=self.dilation[0],
            groups=self.groups,
        )

    def _by_op(self, x: Tensor) -> bool:
        width = GROUP_WIDTH * self.groups
        return (
            x.device.type == "cpu"
            and x.dim() == 4
            and self.in_channels == self.out_channels == width
            and self.stride == (1, 1)
            and all(len(set(pair)) == 1 for pair in (self.kernel_size, self.dilation))
            and isinstance(self.padding, tuple)
            and len(set(self.padding)) == 1
            and self.padding_mode == "zeros"
            # Other tensors, such as quantised weights, bring their own convolution.
            and type(self.weight) in (Tensor, nn.Parameter)
            and (x.dtype == self.weight.dtype or torch.is_autocast_enabled("cpu"))
        )

"""The grouped convolution in operators that ONNX has: its ``Conv``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int, groups: int
) -> Tensor:
    """See :func:`mmlocal.ops.convolution.grouped_conv2d`."""
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=groups)

"""GELU that allocates nothing where no gradient is recorded."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GELU(nn.GELU):
    """PyTorch's GELU, in place where gradients are off.

    To put it behind a linear map or convolution, whose output nobody else reads. Maps of hidden
    channels are the largest of a model; fresh memory for another one costs more time than the GELU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Args and returns: any shape. Overwrites ``x`` under ``torch.no_grad()``."""
        if torch.is_grad_enabled():
            return super().forward(x)
        return torch.ops.aten.gelu_(x, approximate=self.approximate)

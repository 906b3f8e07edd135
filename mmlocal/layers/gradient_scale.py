"""Gradients of parameters, multiplied by a number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return ``x``, and multiply its gradient by ``scale``.

    A hook of a parameter would do the same until the module is copied: copies lose hooks.

    Args:
        x: any tensor.
        scale: factor of the gradient.

    Returns:
        ``x``. It shares memory with the argument.
    """
    return _ScaleGradient.apply(x, scale)


class _ScaleGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None

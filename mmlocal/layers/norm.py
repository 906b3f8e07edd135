"""Layer normalization that leaves padding without a gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` whose backward pass treats a constant token as having no direction.

    The forward pass equals PyTorch's, bit for bit. It maps a token of variance 0 to ``bias``,
    whatever its values. Without ``eps``, the function has no derivative there. With ``eps``, the
    derivative is ``eps ** -0.5``, a thousand for QnA-ViT. In a network without biases, padding
    stays exactly 0 in every layer. Each normalization then multiplies the gradients of padding by a
    thousand, and the first step overflows. The large slope holds only for changes below
    ``eps ** 0.5``, so it tells an optimizer nothing.

    While training, tokens with a variance below ``eps`` get the gradient 0 from the normalization,
    as ``torch.linalg.vector_norm`` has it at 0. All other gradients stay as they are, bit for bit:
    through residual connections, of ``bias``, and of all other tokens.

    Args:
        *args, **kwargs: as in ``nn.LayerNorm``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Args and returns: as in ``nn.LayerNorm``."""
        if self.training and torch.is_grad_enabled() and self.elementwise_affine:
            if torch.compiler.is_compiling():
                # The same as a graph that compilers fuse; eager, it would copy the map.
                fixed = input.detach()
                wide = fixed.to(torch.promote_types(fixed.dtype, torch.float32))
                constant = wide.var(dim=-1, correction=0, keepdim=True) < self.eps
                return super().forward(torch.where(constant, fixed, input))
            return _LayerNorm.apply(input, self.weight, self.bias, self.eps)[0]
        return super().forward(input)


class _LayerNorm(torch.autograd.Function):
    """PyTorch's kernels, with another scale per token in the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.aten.native_layer_norm(x, weight.shape, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, bias, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, weight, bias, mean, rstd)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        # (variance + eps) ** -0.5, one number per token: cheap to change, unlike x or its gradient.
        rstd = rstd * (rstd < 1 / math.sqrt(2 * ctx.eps))
        # Under autocast, PyTorch normalizes in float32.
        grads = torch.ops.aten.native_layer_norm_backward(
            grad, x.to(grad.dtype), weight.shape, mean, rstd, weight, bias, ctx.needs_input_grad[:3]
        )
        return *grads, None

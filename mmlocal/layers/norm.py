"""Layer normalization that leaves padding without a gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` that passes no gradient to constant tokens, such as padding.

    The forward pass equals PyTorch's, bit for bit. It maps a token of variance 0 to ``bias``,
    whatever its values. Without ``eps``, the function has no derivative there. With ``eps``, the
    derivative is ``eps ** -0.5``, which is 1000 in QnA-ViT. In a network without biases, padding
    stays exactly 0 in every layer. Each normalization then multiplies the gradient of padding by
    1000, and the first step overflows. The large slope holds only for changes below ``eps ** 0.5``,
    so it tells an optimizer nothing.

    In training, the normalization passes the gradient 0 to tokens with a variance below ``eps``, as
    ``torch.linalg.vector_norm`` does at 0. All other gradients equal PyTorch's, bit for bit: the
    gradients of other tokens and of ``bias``, and the gradients through residual connections.

    Args:
        *args: arguments of ``nn.LayerNorm``.
        **kwargs: arguments of ``nn.LayerNorm``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize the last dimensions, as ``nn.LayerNorm`` does; the shape stays the same."""
        if self.training and torch.is_grad_enabled() and self.elementwise_affine:
            if torch.compiler.is_compiling():
                # Compilers fuse these operators. In eager mode they would copy the map.
                fixed = input.detach()
                wide = fixed.to(torch.promote_types(fixed.dtype, torch.float32))
                constant = wide.var(dim=-1, correction=0, keepdim=True) < self.eps
                return super().forward(torch.where(constant, fixed, input))
            return _LayerNorm.apply(input, self.weight, self.bias, self.eps)[0]
        return super().forward(input)


class _LayerNorm(torch.autograd.Function):
    """PyTorch's kernels, with the scale of constant tokens set to 0 in the backward pass."""

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
        # rstd is (variance + eps) ** -0.5, one number per token. Changing it is cheaper than
        # changing x or its gradient.
        rstd = rstd * (rstd < 1 / math.sqrt(2 * ctx.eps))
        # Under autocast, PyTorch normalizes in float32.
        grads = torch.ops.aten.native_layer_norm_backward(
            grad, x.to(grad.dtype), weight.shape, mean, rstd, weight, bias, ctx.needs_input_grad[:3]
        )
        return *grads, None

"""Layer normalization that leaves padding without a gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` whose backward pass treats a constant token as having no direction.

    The forward pass is that of PyTorch, bit for bit. A token whose variance is 0 is mapped to
    ``bias``, whatever its values; without ``eps``, this function has no derivative there. ``eps``
    gives it one, of ``eps ** -0.5``: a thousand for QnA-ViT. In a network without biases, padding
    stays exactly 0 in every layer, so each normalization multiplies its gradients by a thousand,
    and the first step overflows. The large slope holds for changes below ``eps ** 0.5`` only, so
    it tells an optimizer nothing.

    While training, tokens with a variance below ``eps`` get the gradient 0 from the normalization,
    as ``torch.linalg.vector_norm`` has it at 0. Their gradients through residual connections and
    the gradient of ``bias`` are untouched, as are those of all other tokens, bit for bit.

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
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        x, weight, bias, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(x, weight, bias, mean, rstd)

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        # (variance + eps) ** -0.5; small as a token's share of memory, unlike x and its gradient.
        rstd = rstd * (rstd < 1 / math.sqrt(2 * ctx.eps))
        # Under autocast, PyTorch normalizes in float32.
        grads = torch.ops.aten.native_layer_norm_backward(
            grad, x.to(grad.dtype), weight.shape, mean, rstd, weight, bias, ctx.needs_input_grad[:3]
        )
        return *grads, None

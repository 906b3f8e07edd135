"""The ELSA op and the 1x1 convolution before it as Triton kernels: no logits in memory.

A program computes the logits of one tile of pixels and one head from the features. It takes
``BLOCK_T`` taps at a time, by one product of small matrices in registers. It computes them twice:
for the softmax and for the weighted sum. Scaling the sum again for every larger logit would take
more instructions.

The numbers here are for the first stage of ELSA-Swin-T in half precision (3 heads, 49 taps, 64
features, 96 channels). The forward pass moves 512 bytes per pixel instead of 1100. It keeps no
logits for the backward pass, which is folded only where this is cheaper:

- The gradient of ``value`` takes one weight from each neighbour. Computing a weight again costs a
  scalar product of 64 features. This is twice the work of the 32 channels that use the weight. So
  the weights are written once, and the kernels of ``triton_backward`` read them.
- The gradient of the logits is multiplied with the projection and with the features. Computing it
  twice costs 49 * 32 multiply-adds and as many reads per pixel and head. Writing 98 bytes and
  reading them twice costs less. So this gradient is written as well.

The weights are freed before this gradient is made. So the backward pass holds one map of the size
of the logits at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from mmlocal.ops.elsa import triton_impl
from mmlocal.ops.elsa.triton_projected_kernels import (
    BLOCK,
    KEPT,
    forward_kernel,
    grad_logits_kernel,
    weights_kernel,
)
from mmlocal.ops.layout import is_channels_last, new_map
from mmlocal.ops.triton_common import accumulator, block_c, programs


class _Call:
    """Arguments of the kernels for one call."""

    def __init__(
        self,
        value: Tensor,
        features: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor | None,
        kernel_size: int,
    ) -> None:
        logits, dims = proj_weight.shape
        weight = proj_weight.contiguous()
        if pad := -dims % BLOCK:  # several numbers are read at once only from aligned rows
            features, weight = F.pad(features, (0, 0, 0, 0, 0, pad)), F.pad(weight, (0, pad))
            dims += pad
        bias = weight.new_zeros(logits) if proj_bias is None else proj_bias.contiguous()
        features = features.flatten(2)
        self.source = (features, features.stride(), weight, bias)
        self.heads = logits // kernel_size**2
        self.size = (dims, self.heads, *value.shape[2:])
        per_head = value.shape[1] // self.heads
        limit = KEPT[features.element_size()] // features.element_size()
        block = max(BLOCK, min(limit, triton.next_power_of_2(dims)))
        self.constants = dict(
            PER_HEAD=per_head,
            KERNEL=kernel_size,
            ACC=accumulator(value.dtype)[1],
            DOT=accumulator(features.dtype)[1],
            BLOCK_C=block_c(per_head),
            BLOCK_T=BLOCK,
            BLOCK_K=block,
            ONE_BLOCK=dims <= block,
        )
        self.grid = programs(value.shape[2] * value.shape[3], self.heads * value.shape[0])


def forward(
    value: Tensor,
    features: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    """See :func:`mmlocal.ops.elsa.elsa_attention_projected`. ``proj_weight`` has two dimensions."""
    call = _Call(value, features, proj_weight, proj_bias, kernel_size)
    out = new_map(value, value.shape)
    dtype = accumulator(value.dtype)[0]
    mul, add = (triton_impl.by_tap(x, dtype) for x in (ghost_mul, ghost_add))
    v, o = value.flatten(2), out.flatten(2)
    with torch.cuda.device_of(value):
        forward_kernel[call.grid](
            v, v.stride(), *call.source, mul, add, o, o.stride(),
            *call.size, dilation, **call.constants,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    features: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    needs_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of the six tensors after ``grad``, ``None`` where not needed.

    The logits are computed again instead of being kept from the forward pass.
    """
    need_value, need_features, need_weight, need_bias, need_mul, need_add = needs_grad
    batches, _, height, width = value.shape
    logits, dims = proj_weight.shape
    call = _Call(value, features, proj_weight, proj_bias, kernel_size)
    dtype = accumulator(value.dtype)[0]
    peaks, scales = value.new_empty(2, batches, call.heads, height, width, dtype=dtype)
    weights = grad_value = grad_features = grad_proj = grad_bias = grad_mul = grad_add = None
    if need_value or need_mul or need_add:
        weights = value.new_empty(batches, logits, height, width)
    with torch.cuda.device_of(value):
        weights_kernel[call.grid](
            *call.source, peaks, scales, weights, *call.size, **call.constants
        )
    if weights is not None:
        grad_value, _, grad_mul, grad_add = triton_impl.backward(
            grad, value, weights, ghost_mul, ghost_add, kernel_size, dilation, False,
            [need_value, False, need_mul, need_add],
        )  # fmt: skip
        del weights  # before the next map of its size
    if need_features or need_weight or need_bias:
        # The gradient of the logits has one row per pixel, whatever the memory format.
        rows = features.new_empty(batches * height * width, logits)
        mul = None if ghost_mul is None else ghost_mul.contiguous()
        g, v = grad.flatten(2), value.flatten(2)
        with torch.cuda.device_of(value):
            grad_logits_kernel[call.grid](
                g, g.stride(), v, v.stride(), *call.source, peaks, scales, mul, rows,
                *call.size, dilation, **call.constants,
            )  # fmt: skip
        if need_features:
            grad_features = (rows @ proj_weight).view(batches, height, width, dims)
            grad_features = grad_features.permute(0, 3, 1, 2)
            if not is_channels_last(features):
                grad_features = grad_features.flatten().view(features.shape)
        if need_weight:
            grad_proj = rows.T @ features.permute(0, 2, 3, 1).reshape(-1, dims)
        if need_bias:
            grad_bias = rows.sum(dim=0, dtype=dtype).to(rows.dtype)
    return grad_value, grad_features, grad_proj, grad_bias, grad_mul, grad_add

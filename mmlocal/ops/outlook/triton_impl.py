"""The outlook op as Triton kernels: from logits to output in one, and no map of weights in memory.

A program works on a tile of pixels of one head, with all of its channels. A pixel gathers from the
windows that hold it, so no kernel uses atomics, and results do not depend on the order in which
programs run. The backward pass keeps two numbers of the softmax per window, head and target.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mmlocal.ops.layout import new_map
from mmlocal.ops.outlook.triton_kernels import grad_attn_kernel, mix_kernel, softmax_kernel
from mmlocal.ops.triton_common import accumulator, block_c, programs


def _constants(value: Tensor, num_heads: int, kernel_size: int, softmax: bool) -> dict:
    """Return the constants that the kernels are compiled for."""
    per_head = value.shape[1] // num_heads
    block_t = triton.next_power_of_2(kernel_size**2)
    return dict(
        PER_HEAD=per_head,
        KERNEL=kernel_size,
        ACC=accumulator(value.dtype)[1],
        # A tile of logits is no larger than a tile of channels.
        BLOCK_C=max(block_c(per_head), block_t),
        BLOCK_T=block_t,
        SOFTMAX=softmax,
    )


def forward(
    value: Tensor,
    attn: Tensor,
    num_heads: int,
    kernel_size: int,
    stride: int,
    padding: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.outlook.outlook_attention`.

    Any memory format is read without a copy if its height and width can be flattened to one
    dimension.
    """
    batches, _, height, width = value.shape
    out = new_map(value, value.shape)
    v, a, o = (x.flatten(2) for x in (value, attn, out))
    with torch.cuda.device_of(value):
        mix_kernel[programs(height * width, num_heads * batches)](
            v, v.stride(), a, a.stride(), None, None, o, o.stride(),
            num_heads, height, width, *attn.shape[2:], padding, stride, False,
            **_constants(value, num_heads, kernel_size, softmax),
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    attn: Tensor,
    num_heads: int,
    kernel_size: int,
    stride: int,
    padding: int,
    softmax: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``value, attn``, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    need_value, need_attn = needs_grad
    batches, _, height, width = value.shape
    rows, cols = attn.shape[2:]
    g, v, a = (x.flatten(2) for x in (grad, value, attn))
    constants = _constants(value, num_heads, kernel_size, softmax)
    targets = num_heads * kernel_size**2
    grad_value = grad_attn = peaks = scales = None
    with torch.cuda.device_of(value):
        if need_value:
            if softmax:
                dtype = accumulator(value.dtype)[0]
                peaks, scales = v.new_empty(2, batches, targets, rows * cols, dtype=dtype)
                softmax_kernel[programs(rows * cols, targets * batches)](
                    a, a.stride(), peaks, scales, num_heads, rows, cols, **constants
                )
            grad_value = new_map(value, value.shape)
            o = grad_value.flatten(2)
            mix_kernel[programs(height * width, num_heads * batches)](
                g, g.stride(), a, a.stride(), peaks, scales, o, o.stride(),
                num_heads, height, width, rows, cols, padding, stride, True, **constants,
            )  # fmt: skip
        if need_attn:
            grad_attn = new_map(attn, attn.shape)
            o = grad_attn.flatten(2)
            grad_attn_kernel[programs(rows * cols, targets * batches)](
                g, g.stride(), v, v.stride(), a, a.stride(), o, o.stride(),
                num_heads, height, width, rows, cols, stride, padding, **constants,
            )  # fmt: skip
    return grad_value, grad_attn

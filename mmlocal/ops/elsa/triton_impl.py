"""The ELSA op as Triton kernels: from logits to output in one, and no map of weights in memory.

A program works on a tile of pixels of one head, with all of its channels. It goes through the taps
of the window one after the other. The backward pass keeps two numbers of the softmax per pixel and
head, and computes the weights again.

No kernel uses atomics, so results do not depend on the order in which programs run. The gradient of
``value`` gathers from the windows that hold a pixel. The gradients of the ghost heads are sums of
partial sums.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mmlocal.ops.elsa.triton_backward import (
    grad_attn_kernel,
    grad_ghost_kernel,
    grad_value_kernel,
    softmax_kernel,
)
from mmlocal.ops.elsa.triton_forward import forward_kernel
from mmlocal.ops.layout import new_map
from mmlocal.ops.triton_common import accumulator, add_up, block_c, programs, splits_of


def kernel_constants(value: Tensor, attn: Tensor, kernel_size: int, softmax: bool) -> dict:
    """Return the constants that the kernels are compiled for."""
    per_head = value.shape[1] * kernel_size**2 // attn.shape[1]
    return dict(
        PER_HEAD=per_head,
        KERNEL=kernel_size,
        ACC=accumulator(value.dtype)[1],
        BLOCK_C=(block := block_c(per_head)),
        # No larger than the tiles of other kernels.
        BLOCK_T=min(block, triton.next_power_of_2(kernel_size**2)),
        SOFTMAX=softmax,
    )


def by_tap(ghost: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a ghost head as ``(taps, channels)``, so that a program reads channels at once."""
    return None if ghost is None else ghost.flatten(1).T.to(dtype).contiguous()


def forward(
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.elsa.elsa_attention`.

    Any memory format is read without a copy if its height and width can be flattened to one
    dimension.
    """
    batches, _, height, width = value.shape
    heads = attn.shape[1] // kernel_size**2
    out = new_map(value, value.shape)
    mul, add = (by_tap(x, accumulator(value.dtype)[0]) for x in (ghost_mul, ghost_add))
    v, a, o = (x.flatten(2) for x in (value, attn, out))
    with torch.cuda.device_of(value):
        forward_kernel[programs(height * width, heads * batches)](
            v, v.stride(), a, a.stride(), mul, add, o, o.stride(),
            heads, height, width, dilation, **kernel_constants(value, attn, kernel_size, softmax)
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    softmax: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``value, attn, ghost_mul, ghost_add``, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    need_value, need_attn, need_mul, need_add = needs_grad
    batches, channels, height, width = value.shape
    heads = attn.shape[1] // kernel_size**2
    dtype = accumulator(value.dtype)[0]
    mul = None if ghost_mul is None else ghost_mul.contiguous()
    g, v, a = (x.flatten(2) for x in (grad, value, attn))
    size = (heads, height, width, dilation)
    constants = kernel_constants(value, attn, kernel_size, softmax)
    grid = programs(height * width, heads * batches)
    grad_value = grad_attn = mul_sums = add_sums = peaks = scales = None
    with torch.cuda.device_of(value):
        if softmax and (need_value or need_attn or need_mul):
            peaks, scales = v.new_empty(2, batches, heads, height * width, dtype=dtype)
            softmax_kernel[grid](a, a.stride(), peaks, scales, *size[:3], **constants)
        if need_value:
            grad_value = new_map(value, value.shape)
            o = grad_value.flatten(2)
            grad_value_kernel[grid](
                g, g.stride(), a, a.stride(), peaks, scales,
                *(by_tap(x, dtype) for x in (ghost_mul, ghost_add)), o, o.stride(),
                *size, **constants,
            )  # fmt: skip
        if need_attn:
            grad_attn = new_map(attn, attn.shape)
            o = grad_attn.flatten(2)
            grad_attn_kernel[grid](
                g, g.stride(), v, v.stride(), a, a.stride(), peaks, scales, mul, o, o.stride(),
                *size, **constants, MASKED=False,
            )  # fmt: skip
        if need_mul or need_add:
            splits = splits_of(batches * height * width)
            sums = [v.new_empty(splits, channels, kernel_size**2, dtype=dtype) if need else None
                    for need in (need_mul, need_add)]  # fmt: skip
            grad_ghost_kernel[(heads * splits,)](
                g, g.stride(), v, v.stride(), a, a.stride(), peaks, scales, *sums,
                splits, batches, *size, **constants,
            )  # fmt: skip
            mul_sums, add_sums = sums
    return (
        grad_value,
        grad_attn,
        add_up(mul_sums, ghost_mul),
        add_up(add_sums, ghost_add),
    )

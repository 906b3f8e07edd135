"""The QnA op as Triton kernels: from scores and values to output in one.

A program works on a tile of windows of one head, with all of its channels. It goes through the taps
one after the other. The weights of the queries of a group are added before they multiply the value.
A group is all queries, or one query if each has its own output. The backward pass keeps three
numbers per window, query and head: the largest logit, the scale of the exponentials, and the mean
gradient of the attention.

No kernel uses atomics, so results do not depend on the order in which programs run. Tokens gather
from the windows that hold them. The gradients of the tables are sums of partial sums.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mmlocal.ops.layout import new_map
from mmlocal.ops.qna.reference import output_size
from mmlocal.ops.qna.triton_backward import grad_tables_kernel, grad_tokens_kernel, softmax_kernel
from mmlocal.ops.qna.triton_forward import forward_kernel
from mmlocal.ops.triton_common import accumulator, add_up, block_c, programs, splits_of


def _constants(
    value: Tensor, scores: Tensor, num_queries: int, kernel_size: int, summed: bool
) -> dict:
    """Return the constants that the kernels are compiled for."""
    queries = num_queries if summed else 1
    per_head = value.shape[1] * num_queries // scores.shape[1]
    return dict(
        PER_HEAD=per_head,
        QUERIES=queries,
        KERNEL=kernel_size,
        ACC=accumulator(value.dtype)[1],
        BLOCK_C=block_c(per_head),
        BLOCK_Q=triton.next_power_of_2(queries),
    )


def forward(
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None,
    tap_weight: Tensor | None,
    num_queries: int,
    kernel_size: int,
    stride: int,
    padding: int,
    sum_queries: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.qna.qna_attention`.

    Any memory format is read without a copy if its height and width can be flattened to one
    dimension.
    """
    batches, channels, height, width = value.shape
    out_height, out_width = (output_size(n, kernel_size, stride, padding) for n in (height, width))
    groups, heads = 1 if sum_queries else num_queries, scores.shape[1] // num_queries
    shape = (batches, channels, out_height, out_width)
    out = new_map(value, shape if sum_queries else (batches, num_queries, *shape[1:]))
    by_group = out.unsqueeze(1) if sum_queries else out
    v, s, o = value.flatten(2), scores.flatten(2), by_group.flatten(3)
    rel, weight = (None if x is None else x.contiguous() for x in (rel_pos, tap_weight))
    with torch.cuda.device_of(value):
        forward_kernel[programs(out_height * out_width, groups * heads * batches)](
            v, v.stride(), s, s.stride(), rel, weight, o, o.stride(),
            groups, heads, height, width, out_height, out_width, stride, padding,
            **_constants(value, scores, num_queries, kernel_size, sum_queries),
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None,
    tap_weight: Tensor | None,
    num_queries: int,
    kernel_size: int,
    stride: int,
    padding: int,
    sum_queries: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``value, scores, rel_pos, tap_weight``, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    need_value, need_scores, need_rel_pos, need_weight = needs_grad
    batches, _, height, width = value.shape
    out_height, out_width = grad.shape[-2:]
    groups, heads = 1 if sum_queries else num_queries, scores.shape[1] // num_queries
    g = (grad.unsqueeze(1) if sum_queries else grad).flatten(3)
    v, s = value.flatten(2), scores.flatten(2)
    rel, weight = (None if x is None else x.contiguous() for x in (rel_pos, tap_weight))
    inputs = (g, g.stride(), v, v.stride(), s, s.stride(), rel, weight)
    size = (heads, height, width, out_height, out_width)
    constants = _constants(value, scores, num_queries, kernel_size, sum_queries)
    dtype = accumulator(value.dtype)[0]
    grad_value = new_map(value, value.shape) if need_value else None
    grad_scores = new_map(scores, scores.shape) if need_scores else None
    windows = out_height * out_width
    need_means = need_scores or need_rel_pos
    buffers = v.new_empty(2 + need_means, batches, scores.shape[1], windows, dtype=dtype)
    peaks, scales, means = buffers if need_means else (*buffers, None)
    sums: list[Tensor | None] = [None, None]
    with torch.cuda.device_of(value):
        softmax_kernel[programs(windows, groups * heads * batches)](
            *inputs, peaks, scales, means, groups, *size, stride, padding, **constants
        )
        if need_value or need_scores:
            outputs = []
            for x in (grad_value, grad_scores):
                x = None if x is None else x.flatten(2)
                outputs += [x, None if x is None else x.stride()]
            grad_tokens_kernel[programs(height * width, heads * batches)](
                *inputs, peaks, scales, means, *outputs, *size, padding,
                STRIDE=stride, GROUPS=groups, **constants,
            )  # fmt: skip
        if need_rel_pos or need_weight:
            splits = splits_of(batches * windows)
            sums = [v.new_empty(splits, scores.shape[1], kernel_size**2, dtype=dtype)
                    if need else None for need in (need_rel_pos, need_weight)]  # fmt: skip
            grad_tables_kernel[(heads * groups * splits,)](
                *inputs, peaks, scales, means, *sums, splits, batches, groups, *size,
                stride, padding, **constants,
            )  # fmt: skip
    return (
        grad_value,
        grad_scores,
        add_up(sums[0], rel_pos),
        add_up(sums[1], tap_weight),
    )

"""The QnA op as Triton kernels: from scores and values to output in one.

A program works on a tile of windows of one head, with all of its channels, and goes through the
taps one after the other; the weights of the queries of a group are added before they meet the
value. A group is all queries, or one query where each has an output of its own. The backward pass
keeps three numbers per window, query and head: the largest logit, the scale of the exponentials,
and the mean gradient of the attention. Nothing is added up by atomics: tokens gather from the
windows that hold them, the gradients of the tables are sums of partial sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlocal.ops.layout import new_map
from mmlocal.ops.qna.reference import output_size
from mmlocal.ops.triton_common import (
    accumulator,
    add_up,
    block_c,
    locate,
    program,
    programs,
    share,
    sized,
    splits_of,
    store,
    tuned,
)


@triton.jit
def _token(tap, y, x, inside, height, width, KERNEL: tl.constexpr):
    """The token that each window with its corner at ``(y, x)`` has at ``tap``, and whether it
    exists."""
    y, x = y + tap // KERNEL, x + tap % KERNEL
    near = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return y.to(tl.int64) * width + x, near


@triton.jit
def _rows(group, head, heads, QUERIES: tl.constexpr, BLOCK_Q: tl.constexpr):
    """The channels of ``scores`` that hold the queries of a group, and which of them exist."""
    query = tl.arange(0, BLOCK_Q)[None, :]
    return (group * QUERIES + query).to(tl.int64) * heads + head, query < QUERIES


@triton.jit
def _channels(head, PER_HEAD: tl.constexpr, BLOCK_C: tl.constexpr):
    """The channels of a head, and which of them exist."""
    channel = tl.arange(0, BLOCK_C)[None, :]
    return head.to(tl.int64) * PER_HEAD + channel, channel < PER_HEAD


@triton.jit
def _table(table, offsets, mask, near, default, ACC: tl.constexpr):
    """Entries of ``rel_pos`` or ``tap_weight`` where ``near`` is true, and what stands for a table
    that is not there. A token outside the map does not exist, whatever the table holds for it."""
    if table is None:
        return default
    return tl.where(near, tl.load(table + offsets, mask=mask, other=0.0).to(ACC), default)


@triton.jit
def _score(pointers, mask, ACC: tl.constexpr):
    return tl.load(pointers, mask=mask, other=float("-inf")).to(ACC)


@triton.jit
def _attention(score, bias, peak, scale):
    # In this order: added to a large score, the bias would lose its digits.
    return tl.exp(score - peak + bias) * scale


@triton.jit
def _softmax(
    scores, stride, rel_pos, rows, asked, y, x, inside, height, width,
    KERNEL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Largest logit of each window and query, 0 without tokens, and the scale of exponentials."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    mask = inside[:, None] & asked
    peak = tl.full(mask.shape, float("-inf"), ACC)
    total = tl.zeros(mask.shape, ACC)
    finite = tl.zeros(mask.shape, ACC)
    for tap in range(TAPS):
        token, near = _token(tap, y, x, inside, height, width, KERNEL)
        score = _score(scores + token[:, None] * stride, near[:, None] & asked, ACC)
        bias = _table(rel_pos, rows * TAPS + tap, asked, near[:, None], 0.0, ACC)
        higher = tl.maximum(peak, score + bias)
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - finite) + tl.exp(score - finite + bias)
        peak = higher
    return finite, tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def _forward_kernel(
    value, value_strides, scores, scores_strides, rel_pos, tap_weight, out, out_strides,
    groups, heads, height, width, out_height, out_width, stride, padding,
    PER_HEAD: tl.constexpr, QUERIES: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    windows = out_height * out_width
    part, tile, batch = program(heads * groups, tl.cdiv(windows, BLOCK_P))
    head, group = part % heads, part // heads
    index, y, x, inside = locate(tile, windows, out_width, BLOCK_P)
    y, x = y * stride - padding, x * stride - padding
    rows, asked = _rows(group, head, heads, QUERIES, BLOCK_Q)
    channel, real = _channels(head, PER_HEAD, BLOCK_C)
    scores += batch * scores_strides[0] + rows * scores_strides[1]
    value += batch * value_strides[0] + channel * value_strides[1]
    peak, scale = _softmax(
        scores, scores_strides[2], rel_pos, rows, asked, y, x, inside, height, width, KERNEL, ACC
    )

    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for tap in range(TAPS):
        token, near = _token(tap, y, x, inside, height, width, KERNEL)
        token = token[:, None]
        score = _score(scores + token * scores_strides[2], near[:, None] & asked, ACC)
        bias = _table(rel_pos, rows * TAPS + tap, asked, near[:, None], 0.0, ACC)
        weight = _attention(score, bias, peak, scale)
        weight *= _table(tap_weight, rows * TAPS + tap, asked, near[:, None], 1.0, ACC)
        mask = near[:, None] & real
        v = tl.load(value + token * value_strides[2], mask=mask, other=0.0).to(ACC)
        total += tl.sum(weight, axis=1)[:, None] * v

    out += batch * out_strides[0] + group.to(tl.int64) * out_strides[1] + channel * out_strides[2]
    store(out + index[:, None] * out_strides[3], total, mask=inside[:, None] & real)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def _softmax_kernel(
    grad, grad_strides, value, value_strides, scores, scores_strides, rel_pos, tap_weight,
    peaks, scales, means, groups, heads, height, width, out_height, out_width, stride, padding,
    PER_HEAD: tl.constexpr, QUERIES: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    windows = out_height * out_width
    part, tile, batch = program(heads * groups, tl.cdiv(windows, BLOCK_P))
    head, group = part % heads, part // heads
    index, y, x, inside = locate(tile, windows, out_width, BLOCK_P)
    y, x = y * stride - padding, x * stride - padding
    rows, asked = _rows(group, head, heads, QUERIES, BLOCK_Q)
    scores += batch * scores_strides[0] + rows * scores_strides[1]
    peak, scale = _softmax(
        scores, scores_strides[2], rel_pos, rows, asked, y, x, inside, height, width, KERNEL, ACC
    )
    mask = inside[:, None] & asked
    softmaxes = (batch * (groups * QUERIES * heads) + rows) * windows + index[:, None]
    store(peaks + softmaxes, peak, mask=mask)
    store(scales + softmaxes, scale, mask=mask)
    if means is not None:
        channel, real = _channels(head, PER_HEAD, BLOCK_C)
        value += batch * value_strides[0] + channel * value_strides[1]
        grad += batch * grad_strides[0] + group.to(tl.int64) * grad_strides[1]
        grad += channel * grad_strides[2] + index[:, None] * grad_strides[3]
        g = tl.load(grad, mask=inside[:, None] & real, other=0.0).to(ACC)
        mean = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
        for tap in range(TAPS):
            token, near = _token(tap, y, x, inside, height, width, KERNEL)
            token = token[:, None]
            score = _score(scores + token * scores_strides[2], near[:, None] & asked, ACC)
            bias = _table(rel_pos, rows * TAPS + tap, asked, near[:, None], 0.0, ACC)
            weight = _attention(score, bias, peak, scale)
            weight *= _table(tap_weight, rows * TAPS + tap, asked, near[:, None], 1.0, ACC)
            pointers = value + token * value_strides[2]
            v = tl.load(pointers, mask=near[:, None] & real, other=0.0).to(ACC)
            mean += weight * tl.sum(g * v, axis=1)[:, None]
        store(means + softmaxes, mean, mask=mask)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def _grad_tokens_kernel(
    grad, grad_strides, value, value_strides, scores, scores_strides, rel_pos, tap_weight,
    peaks, scales, means, grad_value, grad_value_strides, grad_scores, grad_scores_strides,
    heads, height, width, out_height, out_width, padding, STRIDE: tl.constexpr,
    GROUPS: tl.constexpr,
    PER_HEAD: tl.constexpr, QUERIES: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    # Windows along a side that may hold one token.
    REACH: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    windows = out_height * out_width
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    y, x = y + padding, x + padding
    index = index[:, None]
    channel, real = _channels(head, PER_HEAD, BLOCK_C)
    exists = inside[:, None] & real
    grad += batch * grad_strides[0] + channel * grad_strides[2]
    if grad_scores is not None:
        value += batch * value_strides[0] + channel * value_strides[1]
        v = tl.load(value + index * value_strides[2], mask=exists, other=0.0).to(ACC)
    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for group in range(GROUPS):
        rows, asked = _rows(group, head, heads, QUERIES, BLOCK_Q)
        own = scores + batch * scores_strides[0] + rows * scores_strides[1]
        score = _score(own + index * scores_strides[2], inside[:, None] & asked, ACC)
        softmaxes = (batch * (GROUPS * QUERIES * heads) + rows) * windows
        total_score = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
        for step in range(REACH * REACH):
            out_y, out_x = y // STRIDE - step // REACH, x // STRIDE - step % REACH
            i, j = y - out_y * STRIDE, x - out_x * STRIDE
            near = inside & (i < KERNEL) & (out_y >= 0) & (out_y < out_height)
            near = (near & (j < KERNEL) & (out_x >= 0) & (out_x < out_width))[:, None]
            window = (out_y.to(tl.int64) * out_width + out_x)[:, None]
            entry = rows * TAPS + (i * KERNEL + j)[:, None]
            mask = near & asked
            peak = tl.load(peaks + softmaxes + window, mask=mask, other=0.0)
            scale = tl.load(scales + softmaxes + window, mask=mask, other=0.0)
            bias = _table(rel_pos, entry, mask, mask, 0.0, ACC)
            factor = _table(tap_weight, entry, mask, mask, 1.0, ACC)
            weight = _attention(tl.where(mask, score, float("-inf")), bias, peak, scale)
            pointers = grad + window * grad_strides[3]
            g = tl.load(pointers, mask=near & real, other=0.0).to(ACC)
            if grad_value is not None:
                total += tl.sum(weight * factor, axis=1)[:, None] * g
            if grad_scores is not None:
                mean = tl.load(means + softmaxes + window, mask=mask, other=0.0)
                slope = tl.sum(g * v, axis=1)[:, None] * factor
                total_score += tl.where(mask, weight * (slope - mean), 0.0)
        if grad_scores is not None:
            own = grad_scores + batch * grad_scores_strides[0] + rows * grad_scores_strides[1]
            own += index * grad_scores_strides[2]
            store(own, total_score, mask=inside[:, None] & asked)
        grad += grad_strides[1]
    if grad_value is not None:
        grad_value += batch * grad_value_strides[0] + channel * grad_value_strides[1]
        store(grad_value + index * grad_value_strides[2], total, mask=exists)


@tuned
@sized
@triton.jit(do_not_specialize=["batches", "splits", "height", "width", "out_height", "out_width"])
def _grad_tables_kernel(
    grad, grad_strides, value, value_strides, scores, scores_strides, rel_pos, tap_weight,
    peaks, scales, means, rel_pos_sums, tap_weight_sums, splits, batches,
    groups, heads, height, width, out_height, out_width, stride, padding,
    PER_HEAD: tl.constexpr, QUERIES: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    # One tap after the other: the maps of a share are small enough to stay in the cache.
    windows = out_height * out_width
    head, group, split = program(heads, groups)
    tiles = tl.cdiv(windows, BLOCK_P)
    begin, end = share(split.to(tl.int32), splits, tiles * batches)
    rows, asked = _rows(group, head, heads, QUERIES, BLOCK_Q)
    channel, real = _channels(head, PER_HEAD, BLOCK_C)
    all_rows = groups * QUERIES * heads
    scores += rows * scores_strides[1]
    value += channel * value_strides[1]
    grad += group.to(tl.int64) * grad_strides[1] + channel * grad_strides[2]
    sums = (split * all_rows + rows) * TAPS
    for tap in range(TAPS):
        bias = _table(rel_pos, rows * TAPS + tap, asked, asked, 0.0, ACC)
        factor = _table(tap_weight, rows * TAPS + tap, asked, asked, 1.0, ACC)
        rel_pos_sum = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
        tap_weight_sum = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
        for item in range(begin, end):
            batch = (item // tiles).to(tl.int64)
            index, y, x, inside = locate(item % tiles, windows, out_width, BLOCK_P)
            y, x = y * stride - padding, x * stride - padding
            token, near = _token(tap, y, x, inside, height, width, KERNEL)
            index, token, near = index[:, None], token[:, None], near[:, None]
            mask = near & asked
            pointers = scores + (batch * scores_strides[0] + token * scores_strides[2])
            score = _score(pointers, mask, ACC)
            softmaxes = (batch * all_rows + rows) * windows + index
            peak = tl.load(peaks + softmaxes, mask=mask, other=0.0)
            scale = tl.load(scales + softmaxes, mask=mask, other=0.0)
            weight = tl.where(mask, _attention(score, bias, peak, scale), 0.0)
            pointers = value + (batch * value_strides[0] + token * value_strides[2])
            v = tl.load(pointers, mask=near & real, other=0.0).to(ACC)
            pointers = grad + (batch * grad_strides[0] + index * grad_strides[3])
            g = tl.load(pointers, mask=near & real, other=0.0).to(ACC)
            slope = tl.sum(g * v, axis=1)[:, None]
            if tap_weight_sums is not None:
                tap_weight_sum += weight * slope
            if rel_pos_sums is not None:
                mean = tl.load(means + softmaxes, mask=mask, other=0.0)
                rel_pos_sum += tl.where(mask, weight * (slope * factor - mean), 0.0)
        if rel_pos_sums is not None:
            result = tl.sum(rel_pos_sum, axis=0)[None, :]
            store(rel_pos_sums + sums + tap, result, mask=asked)
        if tap_weight_sums is not None:
            result = tl.sum(tap_weight_sum, axis=0)[None, :]
            store(tap_weight_sums + sums + tap, result, mask=asked)


def _constants(value: Tensor, scores: Tensor, num_queries: int, kernel_size: int, summed: bool):
    """Constants that the kernels are compiled for."""
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
    """See :func:`mmlocal.ops.qna.qna_attention`. Reads any memory format without a copy, as long as
    rows follow each other."""
    batches, channels, height, width = value.shape
    out_height, out_width = (output_size(n, kernel_size, stride, padding) for n in (height, width))
    groups, heads = 1 if sum_queries else num_queries, scores.shape[1] // num_queries
    shape = (batches, channels, out_height, out_width)
    out = new_map(value, shape if sum_queries else (batches, num_queries, *shape[1:]))
    by_group = out.unsqueeze(1) if sum_queries else out
    v, s, o = value.flatten(2), scores.flatten(2), by_group.flatten(3)
    rel, weight = (None if x is None else x.contiguous() for x in (rel_pos, tap_weight))
    with torch.cuda.device_of(value):
        _forward_kernel[programs(out_height * out_width, groups * heads * batches)](
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
    """Gradients of ``value, scores, rel_pos, tap_weight``; ``None`` where not needed.

    The softmax is computed again rather than kept since the forward pass.
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
    sums = [None, None]
    with torch.cuda.device_of(value):
        _softmax_kernel[programs(windows, groups * heads * batches)](
            *inputs, peaks, scales, means, groups, *size, stride, padding, **constants
        )
        if need_value or need_scores:
            outputs = []
            for x in (grad_value, grad_scores):
                x = None if x is None else x.flatten(2)
                outputs += [x, None if x is None else x.stride()]
            _grad_tokens_kernel[programs(height * width, heads * batches)](
                *inputs, peaks, scales, means, *outputs, *size, padding,
                STRIDE=stride, GROUPS=groups, **constants,
            )  # fmt: skip
        if need_rel_pos or need_weight:
            splits = splits_of(batches * windows)
            sums = [v.new_empty(splits, scores.shape[1], kernel_size**2, dtype=dtype)
                    if need else None for need in (need_rel_pos, need_weight)]  # fmt: skip
            _grad_tables_kernel[(heads * groups * splits,)](
                *inputs, peaks, scales, means, *sums, splits, batches, groups, *size,
                stride, padding, **constants,
            )  # fmt: skip
    return (
        grad_value,
        grad_scores,
        add_up(sums[0], rel_pos) if need_rel_pos else None,
        add_up(sums[1], tap_weight) if need_weight else None,
    )

"""The QnA op in Triton: the kernels of the backward pass."""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from mmlocal.ops.qna.triton_forward import (
    attention_of,
    entry_of,
    rows_of,
    score_of,
    softmax_of,
    token_of,
)
from mmlocal.ops.triton_common import (
    channels_of,
    locate,
    program,
    share,
    sized,
    store,
    tuned,
    widen,
    within,
)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def softmax_kernel(
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
    rows, asked = rows_of(group, head, heads, QUERIES, BLOCK_Q)
    scores += batch * scores_strides[0] + rows * scores_strides[1]
    peak, scale = softmax_of(
        scores, scores_strides[2], rel_pos, rows, asked, y, x, inside, height, width, KERNEL, ACC
    )
    mask = inside[:, None] & asked
    softmaxes = (batch * (groups * QUERIES * heads) + rows) * windows + index[:, None]
    store(peaks + softmaxes, peak, mask=mask)
    store(scales + softmaxes, scale, mask=mask)
    if means is not None:
        channel, real = channels_of(head, PER_HEAD, BLOCK_C)
        channel, real = channel[None, :], real[None, :]
        value += batch * value_strides[0] + channel * value_strides[1]
        grad += batch * grad_strides[0] + group.to(tl.int64) * grad_strides[1]
        grad += channel * grad_strides[2] + index[:, None] * grad_strides[3]
        g = widen(tl.load(grad, mask=inside[:, None] & real, other=0.0), ACC)
        mean = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
        for tap in range(TAPS):
            token, near = token_of(tap, y, x, inside, height, width, KERNEL)
            token = token[:, None]
            score = score_of(scores + token * scores_strides[2], near[:, None] & asked, ACC)
            bias = entry_of(rel_pos, rows * TAPS + tap, asked, near[:, None], 0.0, ACC)
            weight = attention_of(score, bias, peak, scale)
            weight *= entry_of(tap_weight, rows * TAPS + tap, asked, near[:, None], 1.0, ACC)
            pointers = value + token * value_strides[2]
            v = widen(tl.load(pointers, mask=near[:, None] & real, other=0.0), ACC)
            mean += weight * tl.sum(g * v, axis=1)[:, None]
        store(means + softmaxes, mean, mask=mask)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def grad_tokens_kernel(
    grad, grad_strides, value, value_strides, scores, scores_strides, rel_pos, tap_weight,
    peaks, scales, means, grad_value, grad_value_strides, grad_scores, grad_scores_strides,
    heads, height, width, out_height, out_width, padding, STRIDE: tl.constexpr,
    GROUPS: tl.constexpr,
    PER_HEAD: tl.constexpr, QUERIES: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    # How many windows along a side may hold one token.
    REACH: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    windows = out_height * out_width
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    y, x = y + padding, x + padding
    index = index[:, None]
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    channel, real = channel[None, :], real[None, :]
    exists = inside[:, None] & real
    grad += batch * grad_strides[0] + channel * grad_strides[2]
    if grad_scores is not None:
        value += batch * value_strides[0] + channel * value_strides[1]
        v = widen(tl.load(value + index * value_strides[2], mask=exists, other=0.0), ACC)
    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for group in range(GROUPS):
        rows, asked = rows_of(group, head, heads, QUERIES, BLOCK_Q)
        own = scores + batch * scores_strides[0] + rows * scores_strides[1]
        score = score_of(own + index * scores_strides[2], inside[:, None] & asked, ACC)
        softmaxes = (batch * (GROUPS * QUERIES * heads) + rows) * windows
        total_score = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
        for step in range(REACH * REACH):
            out_y, out_x = y // STRIDE - step // REACH, x // STRIDE - step % REACH
            i, j = y - out_y * STRIDE, x - out_x * STRIDE
            near = inside & (i < KERNEL) & within(out_y, out_height)
            near = (near & (j < KERNEL) & within(out_x, out_width))[:, None]
            window = (out_y.to(tl.int64) * out_width + out_x)[:, None]
            entry = rows * TAPS + (i * KERNEL + j)[:, None]
            mask = near & asked
            peak = tl.load(peaks + softmaxes + window, mask=mask, other=0.0)
            scale = tl.load(scales + softmaxes + window, mask=mask, other=0.0)
            bias = entry_of(rel_pos, entry, mask, mask, 0.0, ACC)
            factor = entry_of(tap_weight, entry, mask, mask, 1.0, ACC)
            weight = attention_of(tl.where(mask, score, float("-inf")), bias, peak, scale)
            pointers = grad + window * grad_strides[3]
            g = widen(tl.load(pointers, mask=near & real, other=0.0), ACC)
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
def grad_tables_kernel(
    grad, grad_strides, value, value_strides, scores, scores_strides, rel_pos, tap_weight,
    peaks, scales, means, rel_pos_sums, tap_weight_sums, splits, batches,
    groups, heads, height, width, out_height, out_width, stride, padding,
    PER_HEAD: tl.constexpr, QUERIES: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    # Taps are in the outer loop, because the maps of a share are small enough to stay in the cache.
    windows = out_height * out_width
    head, group, split = program(heads, groups)
    tiles = tl.cdiv(windows, BLOCK_P)
    begin, end = share(split.to(tl.int32), splits, tiles * batches)
    rows, asked = rows_of(group, head, heads, QUERIES, BLOCK_Q)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    channel, real = channel[None, :], real[None, :]
    all_rows = groups * QUERIES * heads
    scores += rows * scores_strides[1]
    value += channel * value_strides[1]
    grad += group.to(tl.int64) * grad_strides[1] + channel * grad_strides[2]
    sums = (split * all_rows + rows) * TAPS
    for tap in range(TAPS):
        bias = entry_of(rel_pos, rows * TAPS + tap, asked, asked, 0.0, ACC)
        factor = entry_of(tap_weight, rows * TAPS + tap, asked, asked, 1.0, ACC)
        rel_pos_sum = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
        tap_weight_sum = tl.zeros([BLOCK_P, BLOCK_Q], ACC)
        for item in range(begin, end):
            batch = (item // tiles).to(tl.int64)
            index, y, x, inside = locate(item % tiles, windows, out_width, BLOCK_P)
            y, x = y * stride - padding, x * stride - padding
            token, near = token_of(tap, y, x, inside, height, width, KERNEL)
            index, token, near = index[:, None], token[:, None], near[:, None]
            mask = near & asked
            pointers = scores + (batch * scores_strides[0] + token * scores_strides[2])
            score = score_of(pointers, mask, ACC)
            softmaxes = (batch * all_rows + rows) * windows + index
            peak = tl.load(peaks + softmaxes, mask=mask, other=0.0)
            scale = tl.load(scales + softmaxes, mask=mask, other=0.0)
            weight = tl.where(mask, attention_of(score, bias, peak, scale), 0.0)
            pointers = value + (batch * value_strides[0] + token * value_strides[2])
            v = widen(tl.load(pointers, mask=near & real, other=0.0), ACC)
            pointers = grad + (batch * grad_strides[0] + index * grad_strides[3])
            g = widen(tl.load(pointers, mask=near & real, other=0.0), ACC)
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

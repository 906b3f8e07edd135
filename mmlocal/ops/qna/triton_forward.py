"""The QnA op in Triton: the steps of a window, and the kernel of the forward pass."""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from mmlocal.ops.elsa.triton_forward import exp
from mmlocal.ops.triton_common import (
    channels_of,
    locate,
    program,
    sized,
    store,
    tuned,
    widen,
    within,
)


@triton.jit
def token_of(tap, y, x, inside, height, width, KERNEL: tl.constexpr):
    """The token at ``tap`` of each window, and whether it exists.

    ``(y, x)`` is the corner of a window.
    """
    y, x = y + tap // KERNEL, x + tap % KERNEL
    near = inside & within(y, height) & within(x, width)
    return y.to(tl.int64) * width + x, near


@triton.jit
def rows_of(group, head, heads, QUERIES: tl.constexpr, BLOCK_Q: tl.constexpr):
    """The channels of ``scores`` for the queries of a group, and which of them exist."""
    query = tl.arange(0, BLOCK_Q)[None, :]
    return (group * QUERIES + query).to(tl.int64) * heads + head, query < QUERIES


@triton.jit
def entry_of(table, offsets, mask, near, default, ACC: tl.constexpr):
    """Entries of ``rel_pos`` or ``tap_weight`` where ``near`` is true, and ``default`` elsewhere.

    A missing table gives ``default``. Tokens outside the map do not exist, whatever the table
    holds.
    """
    entries = default
    # Triton also compiles what follows an early return, and fails there without a table.
    if table is not None:
        entries = widen(tl.load(table + offsets, mask=mask, other=0.0), ACC)
        entries = tl.where(near, entries, default)
    return entries


@triton.jit
def score_of(pointers, mask, ACC: tl.constexpr):
    return widen(tl.load(pointers, mask=mask, other=float("-inf")), ACC)


@triton.jit
def attention_of(score, bias, peak, scale):
    # The order matters: added to a large score, the bias would lose its digits.
    return exp(score - peak + bias) * scale


@triton.jit
def softmax_of(
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
        token, near = token_of(tap, y, x, inside, height, width, KERNEL)
        score = score_of(scores + token[:, None] * stride, near[:, None] & asked, ACC)
        bias = entry_of(rel_pos, rows * TAPS + tap, asked, near[:, None], 0.0, ACC)
        higher = tl.maximum(peak, score + bias)
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * exp(peak - finite) + exp(score - finite + bias)
        peak = higher
    return finite, tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def forward_kernel(
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
    rows, asked = rows_of(group, head, heads, QUERIES, BLOCK_Q)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    channel, real = channel[None, :], real[None, :]
    scores += batch * scores_strides[0] + rows * scores_strides[1]
    value += batch * value_strides[0] + channel * value_strides[1]
    peak, scale = softmax_of(
        scores, scores_strides[2], rel_pos, rows, asked, y, x, inside, height, width, KERNEL, ACC
    )

    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for tap in range(TAPS):
        token, near = token_of(tap, y, x, inside, height, width, KERNEL)
        token = token[:, None]
        score = score_of(scores + token * scores_strides[2], near[:, None] & asked, ACC)
        bias = entry_of(rel_pos, rows * TAPS + tap, asked, near[:, None], 0.0, ACC)
        weight = attention_of(score, bias, peak, scale)
        weight *= entry_of(tap_weight, rows * TAPS + tap, asked, near[:, None], 1.0, ACC)
        mask = near[:, None] & real
        v = widen(tl.load(value + token * value_strides[2], mask=mask, other=0.0), ACC)
        total += tl.sum(weight, axis=1)[:, None] * v

    out += batch * out_strides[0] + group.to(tl.int64) * out_strides[1] + channel * out_strides[2]
    store(out + index[:, None] * out_strides[3], total, mask=inside[:, None] & real)

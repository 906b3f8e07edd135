"""The outlook op in Triton: the kernels."""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from mmlocal.ops.elsa.triton_forward import exp, softmax_of, weight_of
from mmlocal.ops.qna.triton_forward import token_of
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


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width", "rows", "cols"])
def mix_kernel(
    value, value_strides, attn, attn_strides, peaks, scales, out, out_strides,
    heads, height, width, rows, cols, padding, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Each pixel gathers from the windows that hold it, as their target.

    With ``TRANSPOSED``, the pixel is their source, and ``value`` is the gradient of the output.
    """
    TAPS: tl.constexpr = KERNEL * KERNEL
    # How many windows along a side may hold one pixel.
    REACH: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    attn += batch * attn_strides[0] + head.to(tl.int64) * (TAPS * TAPS) * attn_strides[1]
    value += batch * value_strides[0] + channel[None, :] * value_strides[1]
    softmaxes = (batch * heads + head) * TAPS

    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for step in range(REACH * REACH):
        row = (y + padding) // STRIDE - step // REACH
        col = (x + padding) // STRIDE - step % REACH
        top, left = row * STRIDE - padding, col * STRIDE - padding
        near = inside & within(row, rows) & (y - top < KERNEL)
        near = near & within(col, cols) & (x - left < KERNEL)
        own = ((y - top) * KERNEL + (x - left)).to(tl.int64)
        window = row.to(tl.int64) * cols + col
        pointers = attn + window * attn_strides[2]
        peak, scale = tl.zeros([BLOCK_P], ACC), tl.zeros([BLOCK_P], ACC)
        if TRANSPOSED:
            pointers += own * attn_strides[1]
        else:
            pointers += own * TAPS * attn_strides[1]
            if SOFTMAX:
                peak, scale = softmax_of(pointers, attn_strides[1], near, TAPS, 1, ACC)
        for tap in range(TAPS):
            other, there = token_of(tap, top, left, near, height, width, KERNEL)
            if TRANSPOSED and SOFTMAX:
                at = (softmaxes + tap) * (rows * cols) + window
                peak = tl.load(peaks + at, mask=there, other=0.0)
                scale = tl.load(scales + at, mask=there, other=0.0)
            weight = weight_of(pointers, peak, scale, there, SOFTMAX, ACC)
            mask = there[:, None] & real[None, :]
            v = tl.load(value + other[:, None] * value_strides[2], mask=mask, other=0.0)
            total += weight[:, None] * widen(v, ACC)
            if TRANSPOSED:
                pointers += TAPS * attn_strides[1]
            else:
                pointers += attn_strides[1]

    out += batch * out_strides[0] + channel[None, :] * out_strides[1]
    store(out + index[:, None] * out_strides[2], total, mask=inside[:, None] & real[None, :])


@tuned
@sized
@triton.jit(do_not_specialize=["rows", "cols"])
def softmax_kernel(
    attn, attn_strides, peaks, scales, heads, rows, cols,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The softmax of each target, as a peak and a scale."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    target, tile, batch = program(heads * TAPS, tl.cdiv(rows * cols, BLOCK_P))
    index, _, _, inside = locate(tile, rows * cols, cols, BLOCK_P)
    attn += batch * attn_strides[0] + target.to(tl.int64) * TAPS * attn_strides[1]
    peak, scale = softmax_of(
        attn + index * attn_strides[2], attn_strides[1], inside, TAPS, BLOCK_T, ACC
    )
    index += (batch * heads * TAPS + target) * (rows * cols)
    store(peaks + index, peak, mask=inside)
    store(scales + index, scale, mask=inside)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width", "rows", "cols"])
def grad_attn_kernel(
    grad, grad_strides, value, value_strides, attn, attn_strides, out, out_strides,
    heads, height, width, rows, cols, stride, padding,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits or weights of one target, for a tile of windows."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    target, tile, batch = program(heads * TAPS, tl.cdiv(rows * cols, BLOCK_P))
    index, row, col, inside = locate(tile, rows * cols, cols, BLOCK_P)
    top, left = row * stride - padding, col * stride - padding
    channel, real = channels_of(target // TAPS, PER_HEAD, BLOCK_C)
    grad += batch * grad_strides[0] + channel[None, :] * grad_strides[1]
    value += batch * value_strides[0] + channel[None, :] * value_strides[1]
    own, there = token_of(target % TAPS, top, left, inside, height, width, KERNEL)
    mask = there[:, None] & real[None, :]
    g = widen(tl.load(grad + own[:, None] * grad_strides[2], mask=mask, other=0.0), ACC)

    sources = tl.arange(0, BLOCK_T)[None, :]
    slopes = tl.zeros([BLOCK_P, BLOCK_T], ACC)
    for tap in range(TAPS):
        other, near = token_of(tap, top, left, there, height, width, KERNEL)
        mask = near[:, None] & real[None, :]
        v = widen(tl.load(value + other[:, None] * value_strides[2], mask=mask, other=0.0), ACC)
        slope = tl.sum(tl.where(mask, g * v, 0.0), axis=1)
        slopes = tl.where(sources == tap, slope[:, None], slopes)

    mask = inside[:, None] & (sources < TAPS)
    first = target.to(tl.int64) * TAPS
    if SOFTMAX:
        attn += batch * attn_strides[0] + (first + sources) * attn_strides[1]
        logits = widen(tl.load(attn + index[:, None] * attn_strides[2], mask=mask, other=0.0), ACC)
        logits = tl.where(sources < TAPS, logits, float("-inf"))
        peak = tl.max(logits, axis=1)
        peak = tl.where(peak == float("-inf"), 0.0, peak)
        weights = exp(logits - peak[:, None])
        weights = weights / tl.sum(weights, axis=1)[:, None]
        # The gradient of a softmax: w * (dw - mean), mean = <w, dw>.
        slopes = weights * (slopes - tl.sum(weights * slopes, axis=1)[:, None])
    out += batch * out_strides[0] + (first + sources) * out_strides[1]
    store(out + index[:, None] * out_strides[2], slopes, mask=mask)

"""The ELSA op in Triton: the kernels of the backward pass."""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from mmlocal.ops.elsa.triton_forward import (
    mix_of,
    neighbour,
    softmax_of,
    weight_of,
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
)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width"])
def softmax_kernel(
    attn, attn_strides, peaks, scales, heads, height, width,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, _, _, inside = locate(tile, height * width, width, BLOCK_P)
    first = head.to(tl.int64) * TAPS
    attn += batch * attn_strides[0] + first * attn_strides[1] + index * attn_strides[2]
    peak, scale = softmax_of(attn, attn_strides[1], inside, TAPS, BLOCK_T, ACC)
    index += (batch * heads + head) * (height * width)
    store(peaks + index, peak, mask=inside)
    store(scales + index, scale, mask=inside)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width"])
def grad_value_kernel(
    grad, grad_strides, attn, attn_strides, peaks, scales, ghost_mul, ghost_add, out, out_strides,
    heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The ghost heads are ``(taps, channels)`` in ``ACC``."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    attn += batch * attn_strides[0] + head.to(tl.int64) * TAPS * attn_strides[1]
    grad += batch * grad_strides[0] + channel[None, :] * grad_strides[1]
    if SOFTMAX:
        softmaxes = (batch * heads + head) * (height * width)
        peaks += softmaxes
        scales += softmaxes

    # The pixel whose window has this one at a tap lies on the other side.
    total = mix_of(
        grad, grad_strides[2], attn, attn_strides, peaks, scales, ghost_mul, ghost_add,
        channel, heads * PER_HEAD, index, y, x, inside, real, height, width, -dilation,
        KERNEL, SOFTMAX, False, ACC,
    )  # fmt: skip
    out += batch * out_strides[0] + channel[None, :] * out_strides[1]
    store(out + index[:, None] * out_strides[2], total, mask=inside[:, None] & real[None, :])


@triton.jit
def grad_weight(g, value, ghost_mul, offsets, near, real, ACC: tl.constexpr):
    """Gradient of the weight of one tap for each pixel, 0 where ``near`` is false."""
    v = tl.load(value, mask=near[:, None] & real[None, :], other=0.0)
    product = g * widen(v, ACC)
    if ghost_mul is not None:
        product *= tl.load(ghost_mul + offsets, mask=real, other=0.0).to(ACC)[None, :]
    return tl.where(near, tl.sum(product, axis=1), 0.0)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width"])
def grad_attn_kernel(
    grad, grad_strides, value, value_strides, attn, attn_strides, peaks, scales, ghost_mul,
    out, out_strides, heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, MASKED: tl.constexpr, BLOCK_T: tl.constexpr,
    TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    first = head.to(tl.int64) * TAPS
    out += batch * out_strides[0] + index * out_strides[2]
    value += batch * value_strides[0] + channel[None, :] * value_strides[1]
    grad += batch * grad_strides[0] + channel[None, :] * grad_strides[1]
    grad += index[:, None] * grad_strides[2]
    g = widen(tl.load(grad, mask=inside[:, None] & real[None, :], other=0.0), ACC)

    # The gradient of a softmax: w * (dw - mean), mean = <w, dw>. Without one, attn may be None.
    peak, scale = 0.0, 0.0
    mean = tl.zeros([BLOCK_P], ACC)
    if SOFTMAX:
        attn += batch * attn_strides[0] + index * attn_strides[2]
        softmaxes = (batch * heads + head) * (height * width) + index
        peak = tl.load(peaks + softmaxes, mask=inside, other=0.0)
        scale = tl.load(scales + softmaxes, mask=inside, other=0.0)
        for row in range(KERNEL):
            for col in range(KERNEL):
                other, near = neighbour(
                    row, col, index, y, x, inside, dilation, height, width, KERNEL
                )
                pointers, tap = value + other[:, None] * value_strides[2], row * KERNEL + col
                slope = grad_weight(g, pointers, ghost_mul, channel * TAPS + tap, near, real, ACC)
                pointers = attn + (first + tap) * attn_strides[1]
                mean += slope * weight_of(pointers, peak, scale, inside, SOFTMAX, ACC)
    for row in range(KERNEL):
        for col in range(KERNEL):
            other, near = neighbour(row, col, index, y, x, inside, dilation, height, width, KERNEL)
            pointers, tap = value + other[:, None] * value_strides[2], row * KERNEL + col
            slope = grad_weight(g, pointers, ghost_mul, channel * TAPS + tap, near, real, ACC)
            if SOFTMAX:
                pointers = attn + (first + tap) * attn_strides[1]
                slope = (slope - mean) * weight_of(pointers, peak, scale, inside, SOFTMAX, ACC)
            if MASKED:
                slope = tl.where(near, slope, float("-inf"))
            store(out + (first + tap) * out_strides[1], slope, mask=inside)


@tuned
@sized
@triton.jit(do_not_specialize=["batches", "height", "width", "splits"])
def grad_ghost_kernel(
    grad, grad_strides, value, value_strides, attn, attn_strides, peaks, scales,
    mul_sums, add_sums, splits, batches, heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    # Taps are in the outer loop, because the maps of a share are small enough to stay in the cache.
    head, split = tl.program_id(0) % heads, tl.program_id(0) // heads
    tiles = tl.cdiv(height * width, BLOCK_P)
    begin, end = share(split, splits, tiles * batches)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    value += channel[None, :] * value_strides[1]
    grad += channel[None, :] * grad_strides[1]
    sums = (split.to(tl.int64) * heads * PER_HEAD + channel) * TAPS
    for tap in range(TAPS):
        mul_sum = tl.zeros([BLOCK_P, BLOCK_C], ACC)
        add_sum = tl.zeros([BLOCK_P, BLOCK_C], ACC)
        tap_attn = attn + (head.to(tl.int64) * TAPS + tap) * attn_strides[1]
        for item in range(begin, end):
            batch = (item // tiles).to(tl.int64)
            index, y, x, inside = locate(item % tiles, height * width, width, BLOCK_P)
            other, near = neighbour(
                tap // KERNEL, tap % KERNEL, index, y, x, inside, dilation, height, width, KERNEL
            )
            mask = near[:, None] & real[None, :]
            v = tl.load(
                value + (batch * value_strides[0] + other[:, None] * value_strides[2]),
                mask=mask, other=0.0,
            )  # fmt: skip
            g = tl.load(
                grad + (batch * grad_strides[0] + index[:, None] * grad_strides[2]),
                mask=mask, other=0.0,
            )  # fmt: skip
            product = widen(v, ACC) * widen(g, ACC)
            if add_sums is not None:
                add_sum += product
            if mul_sums is not None:
                peak, scale = 0.0, 0.0
                if SOFTMAX:
                    softmaxes = (batch * heads + head) * (height * width) + index
                    peak = tl.load(peaks + softmaxes, mask=inside, other=0.0)
                    scale = tl.load(scales + softmaxes, mask=inside, other=0.0)
                pointers = tap_attn + (batch * attn_strides[0] + index * attn_strides[2])
                weight = weight_of(pointers, peak, scale, inside, SOFTMAX, ACC)
                mul_sum = tl.where(mask, mul_sum + weight[:, None] * product, mul_sum)
        if mul_sums is not None:
            store(mul_sums + sums + tap, tl.sum(mul_sum, axis=0), mask=real)
        if add_sums is not None:
            store(add_sums + sums + tap, tl.sum(add_sum, axis=0), mask=real)

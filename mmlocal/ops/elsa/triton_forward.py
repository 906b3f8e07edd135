"""The ELSA op in Triton: the steps of a window, and the kernel of the forward pass."""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from mmlocal.ops.triton_common import channels_of, locate, program, sized, store, tuned


@triton.jit
def neighbour(tap, index, y, x, inside, dilation, height, width, KERNEL: tl.constexpr):
    """The neighbour of each pixel at ``tap``, and whether it exists."""
    row = (tap // KERNEL - KERNEL // 2) * dilation
    col = (tap % KERNEL - KERNEL // 2) * dilation
    y, x = y + row, x + col
    near = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return index + (row * width + col), near


@triton.jit
def softmax_of(
    pointers, stride, inside, TAPS: tl.constexpr, BLOCK_T: tl.constexpr, ACC: tl.constexpr
):
    """Largest logit of each pixel, and the scale of its exponentials."""
    peak = tl.full(inside.shape, float("-inf"), ACC)
    finite = tl.zeros(inside.shape, ACC)  # peak, or 0 where all logits so far are -inf
    total = tl.zeros(inside.shape, ACC)
    for start in range(0, TAPS, BLOCK_T):
        taps = start + tl.arange(0, BLOCK_T)[None, :]
        mask = inside[:, None] & (taps < TAPS)
        logits = tl.load(pointers[:, None] + taps.to(tl.int64) * stride, mask=mask, other=0.0)
        logits = tl.where(taps < TAPS, logits.to(ACC), float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, axis=1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - finite) + tl.sum(tl.exp(logits - finite[:, None]), axis=1)
        peak = higher
    return finite, 1.0 / total


@triton.jit
def weight_of(pointers, peak, scale, mask, SOFTMAX: tl.constexpr, ACC: tl.constexpr):
    """Weight of one tap for each pixel, 0 where ``mask`` is false."""
    weight = tl.load(pointers, mask=mask, other=0.0).to(ACC)
    if SOFTMAX:
        weight = tl.where(mask, tl.exp(weight - peak) * scale, 0.0)
    return weight


@triton.jit
def filter_of(weight, ghost_mul, ghost_add, offsets, real, mask, ACC: tl.constexpr):
    """The factors ``(pixels, channels)``: the weight, refined by the ghost heads.

    They are 0 outside ``mask``, even where a ghost head is infinite or NaN.
    """
    factor = weight[:, None]
    if ghost_mul is not None:
        factor = factor * tl.load(ghost_mul + offsets, mask=real, other=0.0).to(ACC)[None, :]
    if ghost_add is not None:
        factor = factor + tl.load(ghost_add + offsets, mask=real, other=0.0).to(ACC)[None, :]
    return tl.where(mask, factor, 0.0)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width"])
def forward_kernel(
    value, value_strides, attn, attn_strides, ghost_mul, ghost_add, out, out_strides,
    heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    first = head.to(tl.int64) * TAPS
    attn += batch * attn_strides[0] + first * attn_strides[1] + index * attn_strides[2]
    value += batch * value_strides[0] + channel[None, :] * value_strides[1]
    peak, scale = 0.0, 0.0
    if SOFTMAX:
        peak, scale = softmax_of(attn, attn_strides[1], inside, TAPS, BLOCK_T, ACC)

    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for tap in range(TAPS):
        other, near = neighbour(tap, index, y, x, inside, dilation, height, width, KERNEL)
        weight = weight_of(attn, peak, scale, inside, SOFTMAX, ACC)
        mask = near[:, None] & real[None, :]
        factor = filter_of(weight, ghost_mul, ghost_add, channel * TAPS + tap, real, mask, ACC)
        v = tl.load(value + other[:, None] * value_strides[2], mask=mask, other=0.0)
        total += factor * v.to(ACC)
        attn += attn_strides[1]

    out += batch * out_strides[0] + channel[None, :] * out_strides[1]
    store(out + index[:, None] * out_strides[2], total, mask=inside[:, None] & real[None, :])

"""The ELSA op in Triton: the steps of a window, and the kernel of the forward pass."""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

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
def neighbour(row, col, index, y, x, inside, dilation, height, width, KERNEL: tl.constexpr):
    """The neighbour of each pixel at a tap of the window, and whether it exists."""
    row = (row - KERNEL // 2) * dilation
    col = (col - KERNEL // 2) * dilation
    y, x = y + row, x + col
    near = inside & within(y, height) & within(x, width)
    return index + (row * width + col), near


@triton.jit
def exp(x):
    """The exponential. It flushes results below ``2**-126`` to 0, as ``tl.exp`` does not."""
    return tl.exp2(x * 1.4426950408889634)


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
        logits = tl.where(taps < TAPS, widen(logits, ACC), float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, axis=1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * exp(peak - finite) + tl.sum(exp(logits - finite[:, None]), axis=1)
        peak = higher
    return finite, 1.0 / total


@triton.jit
def weight_of(pointers, peak, scale, mask, SOFTMAX: tl.constexpr, ACC: tl.constexpr):
    """Weight of one tap for each pixel, 0 where ``mask`` is false."""
    weight = widen(tl.load(pointers, mask=mask, other=0.0), ACC)
    if SOFTMAX:
        weight = tl.where(mask, exp(weight - peak) * scale, 0.0)
    return weight


@triton.jit
def next_tap(row, col, KERNEL: tl.constexpr):
    """The row and column of the next tap."""
    last = col == KERNEL - 1
    return tl.where(last, row + 1, row), tl.where(last, 0, col + 1)


@triton.jit
def add_tap(
    total, weight, value, ghost_mul, ghost_add, entry, real, mask, ACC: tl.constexpr
):  # fmt: skip
    """Add values ``(pixels, channels)`` times the weight, refined by entries of the ghost heads.

    Outside ``mask``, nothing is added, even where a ghost head is infinite or NaN.
    """
    v = widen(tl.load(value, mask=mask, other=0.0), ACC)
    factor = weight[:, None]
    if ghost_mul is None and ghost_add is None:
        return total + tl.where(mask, factor, 0.0) * v  # one selection for all channels
    if ghost_mul is not None:
        factor = factor * tl.load(ghost_mul + entry, mask=real, other=0.0)[None, :]
    if ghost_add is not None:
        factor = factor + tl.load(ghost_add + entry, mask=real, other=0.0)[None, :]
    # A sum that is selected takes no instruction beside the sum. A factor that is selected does.
    return tl.where(mask, total + factor * v, total)


@triton.jit
def mix_of(
    value, value_stride, attn, attn_strides, peak, scale, ghost_mul, ghost_add, entry, ghost_stride,
    index, y, x, inside, real, height, width, dilation, KERNEL: tl.constexpr,
    SOFTMAX: tl.constexpr, OWN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The sums ``(pixels, channels)`` of the values around each pixel, times their factors.

    With ``OWN``, a pixel has weights for its neighbours, and ``peak`` and ``scale`` are its own.
    Without it, the neighbours have weights for the pixel, both point to the first pixel, and the
    dilation is negative.
    """
    REACH: tl.constexpr = KERNEL // 2
    LOG2_E: tl.constexpr = 1.4426950408889634
    total = tl.zeros([inside.shape[0], real.shape[0]], ACC)
    y -= REACH * dilation
    x -= REACH * dilation
    down = width.to(tl.int64) * dilation
    # Addresses need 64 bits. Strides have 32, or are constants.
    right, tap_stride = down * 0 + dilation, down * 0 + attn_strides[1]
    corner = index - REACH * (down + right)
    value += corner[:, None] * value_stride
    row_stride = KERNEL * tap_stride
    if OWN:
        attn += index * attn_strides[2]
        if SOFTMAX:
            scale = tl.log2(scale)  # added to the exponent below
    else:
        attn += corner * attn_strides[2]
        tap_stride += right * attn_strides[2]
        row_stride += down * attn_strides[2]
        if SOFTMAX:
            peak += corner
            scale += corner
    for _ in range(KERNEL):
        # Where the row does not exist, no column does: columns go away from the map.
        row_x = tl.where(inside & within(y, height), x, width if OWN else -1)
        for col in range(KERNEL):
            near = within(row_x + col * dilation, width)
            mask = near[:, None] & real[None, :]
            if OWN:
                weight = widen(tl.load(attn + col * tap_stride, mask=inside, other=0.0), ACC)
                if SOFTMAX:
                    weight = tl.exp2((weight - peak) * LOG2_E + scale)
            else:
                weight = widen(tl.load(attn + col * tap_stride, mask=near, other=0.0), ACC)
                if SOFTMAX:
                    weight -= tl.load(peak + col * dilation, mask=near, other=0.0)
                    weight = tl.exp2(weight * LOG2_E)
                    weight *= tl.load(scale + col * dilation, mask=near, other=0.0)
            total = add_tap(
                total, weight, value + col * right * value_stride,
                ghost_mul, ghost_add, entry + col * ghost_stride, real, mask, ACC,
            )  # fmt: skip
        y += dilation
        value += down * value_stride
        attn += row_stride
        if not OWN and SOFTMAX:
            peak += down
            scale += down
        entry += KERNEL * ghost_stride
    return total


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width"])
def forward_kernel(
    value, value_strides, attn, attn_strides, ghost_mul, ghost_add, out, out_strides,
    heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The ghost heads are ``(taps, channels)`` in ``ACC``."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    first = attn + (batch * attn_strides[0] + head.to(tl.int64) * TAPS * attn_strides[1])
    value += batch * value_strides[0] + channel[None, :] * value_strides[1]
    peak, scale = 0.0, 0.0
    if SOFTMAX:
        pointers = first + index * attn_strides[2]
        peak, scale = softmax_of(pointers, attn_strides[1], inside, TAPS, BLOCK_T, ACC)

    total = mix_of(
        value, value_strides[2], first, attn_strides, peak, scale, ghost_mul, ghost_add,
        channel, heads * PER_HEAD, index, y, x, inside, real, height, width, dilation,
        KERNEL, SOFTMAX, True, ACC,
    )  # fmt: skip
    out += batch * out_strides[0] + channel[None, :] * out_strides[1]
    store(out + index[:, None] * out_strides[2], total, mask=inside[:, None] & real[None, :])

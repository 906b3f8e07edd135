"""The ELSA op as Triton kernels: from logits to output in one, and no map of weights in memory.

A program works on a tile of pixels of one head, with all of its channels, and goes through the taps
of the window one after the other. The backward pass keeps two numbers of the softmax per pixel and
head and computes the weights again. Nothing is added up by atomics: the gradient of ``value``
gathers from the windows that hold a pixel, those of the ghost heads are sums of partial sums. So
results do not depend on the order in which programs run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlocal.ops.layout import new_map
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
def neighbour(tap, index, y, x, inside, dilation, height, width, KERNEL: tl.constexpr):
    """For each pixel the one that its window has at ``tap``, and whether it exists."""
    row = (tap // KERNEL - KERNEL // 2) * dilation
    col = (tap % KERNEL - KERNEL // 2) * dilation
    y, x = y + row, x + col
    near = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return index + (row * width + col), near


@triton.jit
def _softmax(
    pointers, stride, inside, TAPS: tl.constexpr, BLOCK_T: tl.constexpr, ACC: tl.constexpr
):
    """Largest logit of each pixel, and what its exponentials have to be scaled by."""
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
def _weight(pointers, peak, scale, mask, SOFTMAX: tl.constexpr, ACC: tl.constexpr):
    """Weight of one tap for each pixel, 0 where ``mask`` is false."""
    weight = tl.load(pointers, mask=mask, other=0.0).to(ACC)
    if SOFTMAX:
        weight = tl.where(mask, tl.exp(weight - peak) * scale, 0.0)
    return weight


@triton.jit
def filter_of(weight, ghost_mul, ghost_add, offsets, real, mask, ACC: tl.constexpr):
    """The factor of ``(pixels, channels)``: the weight, refined by the ghost heads; 0 outside
    ``mask``, also where a ghost head is infinite or NaN."""
    factor = weight[:, None]
    if ghost_mul is not None:
        factor = factor * tl.load(ghost_mul + offsets, mask=real, other=0.0).to(ACC)[None, :]
    if ghost_add is not None:
        factor = factor + tl.load(ghost_add + offsets, mask=real, other=0.0).to(ACC)[None, :]
    return tl.where(mask, factor, 0.0)


@triton.jit
def channels_of(head, PER_HEAD: tl.constexpr, BLOCK_C: tl.constexpr):
    """The channels of a head, and which of them exist."""
    channel = tl.arange(0, BLOCK_C)
    return head.to(tl.int64) * PER_HEAD + channel, channel < PER_HEAD


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width"])
def _forward_kernel(
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
        peak, scale = _softmax(attn, attn_strides[1], inside, TAPS, BLOCK_T, ACC)

    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for tap in range(TAPS):
        other, near = neighbour(tap, index, y, x, inside, dilation, height, width, KERNEL)
        weight = _weight(attn, peak, scale, inside, SOFTMAX, ACC)
        mask = near[:, None] & real[None, :]
        factor = filter_of(weight, ghost_mul, ghost_add, channel * TAPS + tap, real, mask, ACC)
        v = tl.load(value + other[:, None] * value_strides[2], mask=mask, other=0.0)
        total += factor * v.to(ACC)
        attn += attn_strides[1]

    out += batch * out_strides[0] + channel[None, :] * out_strides[1]
    store(out + index[:, None] * out_strides[2], total, mask=inside[:, None] & real[None, :])


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width"])
def _softmax_kernel(
    attn, attn_strides, peaks, scales, heads, height, width,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, _, _, inside = locate(tile, height * width, width, BLOCK_P)
    first = head.to(tl.int64) * TAPS
    attn += batch * attn_strides[0] + first * attn_strides[1] + index * attn_strides[2]
    peak, scale = _softmax(attn, attn_strides[1], inside, TAPS, BLOCK_T, ACC)
    index += (batch * heads + head) * (height * width)
    store(peaks + index, peak, mask=inside)
    store(scales + index, scale, mask=inside)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width"])
def _grad_value_kernel(
    grad, grad_strides, attn, attn_strides, peaks, scales, ghost_mul, ghost_add, out, out_strides,
    heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    attn += batch * attn_strides[0] + head.to(tl.int64) * TAPS * attn_strides[1]
    grad += batch * grad_strides[0] + channel[None, :] * grad_strides[1]
    softmaxes = (batch * heads + head) * (height * width)

    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    for tap in range(TAPS):
        # The pixel whose window has this one at ``tap``: it lies on the other side.
        other, near = neighbour(tap, index, y, x, inside, -dilation, height, width, KERNEL)
        peak, scale = 0.0, 0.0
        if SOFTMAX:
            peak = tl.load(peaks + softmaxes + other, mask=near, other=0.0)
            scale = tl.load(scales + softmaxes + other, mask=near, other=0.0)
        weight = _weight(attn + other * attn_strides[2], peak, scale, near, SOFTMAX, ACC)
        mask = near[:, None] & real[None, :]
        factor = filter_of(weight, ghost_mul, ghost_add, channel * TAPS + tap, real, mask, ACC)
        g = tl.load(grad + other[:, None] * grad_strides[2], mask=mask, other=0.0)
        total += factor * g.to(ACC)
        attn += attn_strides[1]

    out += batch * out_strides[0] + channel[None, :] * out_strides[1]
    store(out + index[:, None] * out_strides[2], total, mask=inside[:, None] & real[None, :])


@triton.jit
def grad_weight(g, value, ghost_mul, offsets, mask, real, ACC: tl.constexpr):
    """Gradient of the weight of one tap for each pixel."""
    product = g * tl.load(value, mask=mask, other=0.0).to(ACC)
    if ghost_mul is not None:
        product *= tl.load(ghost_mul + offsets, mask=real, other=0.0).to(ACC)[None, :]
    return tl.sum(tl.where(mask, product, 0.0), axis=1)


@tuned
@sized
@triton.jit(do_not_specialize=["height", "width"])
def _grad_attn_kernel(
    grad, grad_strides, value, value_strides, attn, attn_strides, peaks, scales, ghost_mul,
    out, out_strides, heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    first = head.to(tl.int64) * TAPS
    attn += batch * attn_strides[0] + index * attn_strides[2]
    out += batch * out_strides[0] + index * out_strides[2]
    value += batch * value_strides[0] + channel[None, :] * value_strides[1]
    grad += batch * grad_strides[0] + channel[None, :] * grad_strides[1]
    grad += index[:, None] * grad_strides[2]
    g = tl.load(grad, mask=inside[:, None] & real[None, :], other=0.0).to(ACC)

    # Through a softmax: w * (dw - mean), mean = <w, dw>.
    peak, scale = 0.0, 0.0
    mean = tl.zeros([BLOCK_P], ACC)
    if SOFTMAX:
        softmaxes = (batch * heads + head) * (height * width) + index
        peak = tl.load(peaks + softmaxes, mask=inside, other=0.0)
        scale = tl.load(scales + softmaxes, mask=inside, other=0.0)
        for tap in range(TAPS):
            other, near = neighbour(tap, index, y, x, inside, dilation, height, width, KERNEL)
            mask = near[:, None] & real[None, :]
            pointers = value + other[:, None] * value_strides[2]
            slope = grad_weight(g, pointers, ghost_mul, channel * TAPS + tap, mask, real, ACC)
            pointers = attn + (first + tap) * attn_strides[1]
            mean += slope * _weight(pointers, peak, scale, inside, SOFTMAX, ACC)
    for tap in range(TAPS):
        other, near = neighbour(tap, index, y, x, inside, dilation, height, width, KERNEL)
        mask = near[:, None] & real[None, :]
        pointers = value + other[:, None] * value_strides[2]
        slope = grad_weight(g, pointers, ghost_mul, channel * TAPS + tap, mask, real, ACC)
        if SOFTMAX:
            pointers = attn + (first + tap) * attn_strides[1]
            slope = (slope - mean) * _weight(pointers, peak, scale, inside, SOFTMAX, ACC)
        store(out + (first + tap) * out_strides[1], slope, mask=inside)


@tuned
@sized
@triton.jit(do_not_specialize=["batches", "height", "width", "splits"])
def _grad_ghost_kernel(
    grad, grad_strides, value, value_strides, attn, attn_strides, peaks, scales,
    mul_sums, add_sums, splits, batches, heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    SOFTMAX: tl.constexpr, BLOCK_T: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    # One tap after the other: the maps of a share are small enough to stay in the cache.
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
            other, near = neighbour(tap, index, y, x, inside, dilation, height, width, KERNEL)
            mask = near[:, None] & real[None, :]
            v = tl.load(
                value + (batch * value_strides[0] + other[:, None] * value_strides[2]),
                mask=mask, other=0.0,
            ).to(ACC)  # fmt: skip
            g = tl.load(
                grad + (batch * grad_strides[0] + index[:, None] * grad_strides[2]),
                mask=mask, other=0.0,
            ).to(ACC)  # fmt: skip
            product = v * g
            if add_sums is not None:
                add_sum += product
            if mul_sums is not None:
                peak, scale = 0.0, 0.0
                if SOFTMAX:
                    softmaxes = (batch * heads + head) * (height * width) + index
                    peak = tl.load(peaks + softmaxes, mask=inside, other=0.0)
                    scale = tl.load(scales + softmaxes, mask=inside, other=0.0)
                pointers = tap_attn + (batch * attn_strides[0] + index * attn_strides[2])
                weight = _weight(pointers, peak, scale, inside, SOFTMAX, ACC)
                mul_sum += tl.where(mask, weight[:, None] * product, 0.0)
        if mul_sums is not None:
            store(mul_sums + sums + tap, tl.sum(mul_sum, axis=0), mask=real)
        if add_sums is not None:
            store(add_sums + sums + tap, tl.sum(add_sum, axis=0), mask=real)


def _constants(value: Tensor, attn: Tensor, kernel_size: int, softmax: bool) -> dict:
    """Constants that the kernels are compiled for."""
    per_head = value.shape[1] * kernel_size**2 // attn.shape[1]
    return dict(
        PER_HEAD=per_head,
        KERNEL=kernel_size,
        ACC=accumulator(value.dtype)[1],
        BLOCK_C=(block := block_c(per_head)),
        # No larger than the other tiles.
        BLOCK_T=min(block, triton.next_power_of_2(kernel_size**2)),
        SOFTMAX=softmax,
    )


def forward(
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.elsa.elsa_attention`. Reads any memory format without a copy, as long
    as rows follow each other."""
    batches, _, height, width = value.shape
    heads = attn.shape[1] // kernel_size**2
    out = new_map(value, value.shape)
    mul, add = (None if x is None else x.contiguous() for x in (ghost_mul, ghost_add))
    v, a, o = (x.flatten(2) for x in (value, attn, out))
    with torch.cuda.device_of(value):
        _forward_kernel[programs(height * width, heads * batches)](
            v, v.stride(), a, a.stride(), mul, add, o, o.stride(),
            heads, height, width, dilation, **_constants(value, attn, kernel_size, softmax)
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

    The softmax is computed again rather than kept since the forward pass.
    """
    need_value, need_attn, need_mul, need_add = needs_grad
    batches, channels, height, width = value.shape
    heads = attn.shape[1] // kernel_size**2
    mul, add = (None if x is None else x.contiguous() for x in (ghost_mul, ghost_add))
    g, v, a = (x.flatten(2) for x in (grad, value, attn))
    size = (heads, height, width, dilation)
    constants = _constants(value, attn, kernel_size, softmax)
    dtype = accumulator(value.dtype)[0]
    grid = programs(height * width, heads * batches)
    grad_value = grad_attn = mul_sums = add_sums = peaks = scales = None
    with torch.cuda.device_of(value):
        if softmax and (need_value or need_attn or need_mul):
            peaks, scales = v.new_empty(2, batches, heads, height * width, dtype=dtype)
            _softmax_kernel[grid](a, a.stride(), peaks, scales, *size[:3], **constants)
        if need_value:
            grad_value = new_map(value, value.shape)
            o = grad_value.flatten(2)
            _grad_value_kernel[grid](
                g, g.stride(), a, a.stride(), peaks, scales, mul, add, o, o.stride(),
                *size, **constants,
            )  # fmt: skip
        if need_attn:
            grad_attn = new_map(attn, attn.shape)
            o = grad_attn.flatten(2)
            _grad_attn_kernel[grid](
                g, g.stride(), v, v.stride(), a, a.stride(), peaks, scales, mul, o, o.stride(),
                *size, **constants,
            )  # fmt: skip
        if need_mul or need_add:
            splits = splits_of(batches * height * width)
            sums = [v.new_empty(splits, channels, kernel_size**2, dtype=dtype) if need else None
                    for need in (need_mul, need_add)]  # fmt: skip
            _grad_ghost_kernel[(heads * splits,)](
                g, g.stride(), v, v.stride(), a, a.stride(), peaks, scales, *sums,
                splits, batches, *size, **constants,
            )  # fmt: skip
            mul_sums, add_sums = sums
    return (
        grad_value,
        grad_attn,
        add_up(mul_sums, ghost_mul) if need_mul else None,
        add_up(add_sums, ghost_add) if need_add else None,
    )

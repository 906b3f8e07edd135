"""Deformable attention in Triton: the kernel of the backward pass.

A program works on one query and head, as in the forward pass. Every gradient but one is its own.
The gradient of ``value`` is a sum over programs, by atomic additions.

Additions of floats depend on their order. So if results must be deterministic, the kernel adds
integers: the numbers times ``step``, a power of 2 that leaves room for as many as there can be.
Numbers that are not finite go to a map of their own, where their order does not matter.
"""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from mmlocal.ops.deformable.triton_kernels import (
    channels_at,
    map_of,
    read,
    row_of,
    samples_of,
    shares_of,
    softmax_of_row,
    weight_of,
)
from mmlocal.ops.triton_common import store


@triton.jit
def _spread(
    sums, special, step, offset, mask, factor, grad, START: tl.constexpr, BLOCK: tl.constexpr
):
    """Add ``factor * grad`` to some channels of one pixel for each sample."""
    offset = offset[:, None] + (START + tl.arange(0, BLOCK))[None, :]
    x = factor[:, None] * grad
    mask = mask[:, None] & tl.full(x.shape, 1, tl.int1)
    if special is None:
        tl.atomic_add(sums + offset, x, mask=mask, sem="relaxed")
    else:
        scaled = x * step
        finite = tl.abs(scaled) < 2.0**62  # false for NaN
        whole = tl.floor(tl.where(finite, scaled, 0.0) + 0.5).to(tl.int64)
        tl.atomic_add(sums + offset, whole, mask=mask, sem="relaxed")
        tl.atomic_add(special + offset, x, mask=mask & (finite == 0), sem="relaxed")


@triton.jit
def _products(
    value, offsets, masks, grad, START: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    """The product of the output's gradient with each of the four pixels of each sample."""
    return (
        tl.sum(read(value, offsets[0], masks[0], START, BLOCK, ACC) * grad, axis=1),
        tl.sum(read(value, offsets[1], masks[1], START, BLOCK, ACC) * grad, axis=1),
        tl.sum(read(value, offsets[2], masks[2], START, BLOCK, ACC) * grad, axis=1),
        tl.sum(read(value, offsets[3], masks[3], START, BLOCK, ACC) * grad, axis=1),
    )


@triton.jit(do_not_specialize=["rows", "queries", "pixels"])
def backward_kernel(
    grad, value, places, weights, reference, reference_strides, table,
    grad_value, special, step, grad_places, grad_weights, grad_reference, rows, queries, pixels,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, PADDED: tl.constexpr, MAIN: tl.constexpr,
    REST: tl.constexpr, MAPS: tl.constexpr, POINTS: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BORDER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    SAMPLES: tl.constexpr = MAPS * POINTS
    BLOCKS: tl.constexpr = (POINTS + BLOCK_S - 1) // BLOCK_S
    # Whether a gradient needs the product of the output's gradient with each pixel.
    OWN: tl.constexpr = grad_places is not None or grad_weights is not None
    PRODUCTS: tl.constexpr = OWN or grad_reference is not None
    row, batch, query, head = row_of(queries, HEADS)
    if row >= rows:
        return
    first_row = batch * pixels * (HEADS * PADDED) + head * PADDED
    value += first_row
    places += row * (SAMPLES * 2)
    weights += row * SAMPLES
    if grad_value is not None:
        grad_value += first_row
        if special is not None:
            special += first_row
            step = tl.load(step)
    if grad_places is not None:
        grad_places += row * (SAMPLES * 2)
    if grad_weights is not None:
        grad_weights += row * SAMPLES
    if grad_reference is not None:
        grad_reference += row * (MAPS * 2)
    if reference is not None:
        reference += batch * reference_strides[0] + query * reference_strides[1]
    pointers, real = channels_at(grad + row * CHANNELS, 0, MAIN, CHANNELS)
    g = tl.load(pointers, mask=real, other=0.0).to(ACC)[None, :]
    if REST:
        pointers, real = channels_at(grad + row * CHANNELS, MAIN, REST, CHANNELS)
        g_rest = tl.load(pointers, mask=real, other=0.0).to(ACC)[None, :]
    peak, scale = softmax_of_row(weights, reference, SAMPLES, BLOCK_N, ACC)
    # The gradient of each weight. The gradient of a logit needs all of them.
    slopes = tl.zeros([BLOCK_B, BLOCK_S], ACC)
    block = tl.arange(0, BLOCK_B)[:, None]
    for number in range(MAPS):
        height, width, first = map_of(table, number)
        total_x = tl.zeros([BLOCK_S], ACC)
        total_y = tl.zeros([BLOCK_S], ACC)
        for part in range(BLOCKS):
            point = part * BLOCK_S + tl.arange(0, BLOCK_S)
            exists = point < POINTS
            sample = number * POINTS + point
            weight = weight_of(weights + sample, peak, scale, exists, reference, ACC)
            offsets, masks, share_x, share_y, moves_x, moves_y = samples_of(
                places + sample * 2, reference, reference_strides[3], height, width, first, exists,
                HEADS * PADDED, BORDER, ACC,
            )  # fmt: skip
            shares = shares_of(share_x, share_y)
            if grad_value is not None:
                for i in tl.static_range(4):
                    factor = weight * shares[i]
                    at = offsets[i], masks[i], factor
                    _spread(grad_value, special, step, *at, g, 0, MAIN)
                    if REST:
                        _spread(grad_value, special, step, *at, g_rest, MAIN, REST)
            if PRODUCTS:
                p = _products(value, offsets, masks, g, 0, MAIN, ACC)
                if REST:
                    q = _products(value, offsets, masks, g_rest, MAIN, REST, ACC)
                    p = p[0] + q[0], p[1] + q[1], p[2] + q[2], p[3] + q[3]
                slope = shares[0] * p[0] + shares[1] * p[1] + shares[2] * p[2] + shares[3] * p[3]
                # A difference of the same number twice is exactly 0, as it is beyond a border.
                slope_x = (1.0 - share_y) * (p[1] - p[0]) + share_y * (p[3] - p[2])
                slope_y = (1.0 - share_x) * (p[2] - p[0]) + share_x * (p[3] - p[1])
                slope_x = tl.where(moves_x, weight * slope_x, 0.0)
                slope_y = tl.where(moves_y, weight * slope_y, 0.0)
                if reference is None:
                    if grad_weights is not None:
                        store(grad_weights + sample, slope, mask=exists)
                    slope_x *= width.to(ACC)
                    slope_y *= height.to(ACC)
                if grad_places is not None:
                    store(grad_places + sample * 2, slope_x, mask=exists)
                    store(grad_places + sample * 2 + 1, slope_y, mask=exists)
                if grad_reference is not None:
                    total_x += tl.where(exists, slope_x, 0.0)
                    total_y += tl.where(exists, slope_y, 0.0)
                if reference is not None and grad_weights is not None:
                    here = (block == number * BLOCKS + part) & exists[None, :]
                    slopes = tl.where(here, slope[None, :], slopes)
        if grad_reference is not None:
            store(grad_reference + number * 2, tl.sum(total_x, axis=0) * width.to(ACC), None)
            store(grad_reference + number * 2 + 1, tl.sum(total_y, axis=0) * height.to(ACC), None)
        if reference is not None:
            reference += reference_strides[2]
    if reference is not None and grad_weights is not None:
        point = block % BLOCKS * BLOCK_S + tl.arange(0, BLOCK_S)[None, :]
        exists = (block < MAPS * BLOCKS) & (point < POINTS)
        sample = block // BLOCKS * POINTS + point
        weight = weight_of(weights + sample, peak, scale, exists, reference, ACC)
        # The gradient of a softmax: w * (dw - mean), mean = <w, dw>.
        mean = tl.sum(tl.sum(weight * slopes, axis=1), axis=0)
        store(grad_weights + sample, weight * (slopes - mean), mask=exists)

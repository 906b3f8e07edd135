"""Deformable attention in Triton: the samples of a query, and the kernel of the forward pass.

A program works on one query and head. It takes ``BLOCK_S`` points of one map at a time and keeps a
sum for each of them, so it adds over points only once. Both operators run these kernels. The one
that starts from offsets passes ``reference``, and its ``places`` are offsets and its ``weights``
logits.
"""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from mmlocal.ops.elsa.triton_forward import exp, softmax_of
from mmlocal.ops.triton_common import store, widen, within


@triton.jit
def row_of(queries, HEADS: tl.constexpr):
    """The row (batch, query, head) of this program, and its three indices."""
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    head, others = row % HEADS, row // HEADS
    return row, others // queries, others % queries, head


@triton.jit
def softmax_of_row(
    weights, reference, SAMPLES: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr
):
    """Largest logit of a row, and the scale of its exponentials. Weights are left as they are."""
    if reference is None:
        return tl.full([], 0.0, ACC), tl.full([], 1.0, ACC)
    first = weights + tl.zeros([1], tl.int64)
    peak, scale = softmax_of(first, 1, tl.full([1], 1, tl.int1), SAMPLES, BLOCK_N, ACC)
    return tl.sum(peak, axis=0), tl.sum(scale, axis=0)


@triton.jit
def map_of(table, number):
    """Height, width and first pixel of a map."""
    table += number * 3
    height, width = tl.load(table).to(tl.int32), tl.load(table + 1).to(tl.int32)
    return height, width, tl.load(table + 2)


@triton.jit
def weight_of(logits, peak, scale, exists, reference, ACC: tl.constexpr):
    """Weights of samples, 0 where there is none."""
    weight = widen(tl.load(logits, mask=exists, other=0.0), ACC)
    if reference is not None:
        weight = tl.where(exists, exp(weight - peak) * scale, 0.0)
    return weight


@triton.jit
def cell_of(at, missing, size, BORDER: tl.constexpr):
    """The two pixels along one axis around each sample, and the share of the second one.

    Also whether each pixel is there, and whether a step of the sample changes the shares. Two
    pixels outside the map, no pixel is there. A number beyond that has no whole part in 32 bits.
    """
    cut = tl.where(missing | (at < -2.0), -2.0, at)
    cut = tl.where(cut > size + 1, (size + 1).to(at.dtype), cut)
    floor = tl.floor(cut)
    share = tl.where(missing, float("nan"), cut - floor)
    lower = floor.to(tl.int32)
    upper = lower + 1
    if BORDER:
        lower = tl.minimum(tl.maximum(lower, 0), size - 1)
        upper = tl.minimum(tl.maximum(upper, 0), size - 1)
    has_lower, has_upper = within(lower, size), within(upper, size)
    return lower, has_lower, upper, has_upper, share, cut == at


@triton.jit
def samples_of(
    places, reference, reference_stride, height, width, first, exists, ROW: tl.constexpr,
    BORDER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The four pixels of each sample, row by row: where they are, and whether they are there.

    Also the shares of the right and of the lower pixels, and whether a step in x and in y counts.
    """
    x = tl.load(places, mask=exists, other=0.0).to(ACC)
    y = tl.load(places + 1, mask=exists, other=0.0).to(ACC)
    if reference is None:
        x, y = x * width.to(ACC) - 0.5, y * height.to(ACC) - 0.5
    else:
        x += tl.load(reference).to(ACC) * width.to(ACC) - 0.5
        y += tl.load(reference + reference_stride).to(ACC) * height.to(ACC) - 0.5
    missing = (x != x) | (y != y)
    left, has_left, right, has_right, share_x, moves_x = cell_of(x, missing, width, BORDER)
    top, has_top, bottom, has_bottom, share_y, moves_y = cell_of(y, missing, height, BORDER)
    known = exists & (missing == 0)
    has_top, has_bottom = has_top & known, has_bottom & known
    masks = has_top & has_left, has_top & has_right, has_bottom & has_left, has_bottom & has_right
    above, below = first + top.to(tl.int64) * width, first + bottom.to(tl.int64) * width
    offsets = (
        (above + left) * ROW,
        (above + right) * ROW,
        (below + left) * ROW,
        (below + right) * ROW,
    )
    return offsets, masks, share_x, share_y, moves_x, moves_y


@triton.jit
def shares_of(share_x, share_y):
    """The share of each of the four pixels."""
    rest_x, rest_y = 1.0 - share_x, 1.0 - share_y
    return rest_y * rest_x, rest_y * share_x, share_y * rest_x, share_y * share_x


@triton.jit
def read(value, offset, mask, START: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Channels ``(samples, BLOCK)`` from ``START`` on of one pixel each; 0 if it is not there."""
    pointers = value + offset[:, None] + (START + tl.arange(0, BLOCK))[None, :]
    return widen(tl.load(pointers, mask=mask[:, None], other=0.0), ACC)


@triton.jit
def channels_at(pointers, START: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """Pointers to some channels of a row without padding, and which of them exist."""
    channel = START + tl.arange(0, BLOCK)
    return pointers + channel, channel < CHANNELS


@triton.jit(do_not_specialize=["rows", "queries", "pixels"])
def forward_kernel(
    value, places, weights, reference, reference_strides, table, out, rows, queries, pixels,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, PADDED: tl.constexpr, MAIN: tl.constexpr,
    REST: tl.constexpr, MAPS: tl.constexpr, POINTS: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr, BORDER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    SAMPLES: tl.constexpr = MAPS * POINTS
    row, batch, query, head = row_of(queries, HEADS)
    if row >= rows:
        return
    value += batch * pixels * (HEADS * PADDED) + head * PADDED
    places += row * (SAMPLES * 2)
    weights += row * SAMPLES
    if reference is not None:
        reference += batch * reference_strides[0] + query * reference_strides[1]
    peak, scale = softmax_of_row(weights, reference, SAMPLES, BLOCK_N, ACC)
    total = tl.zeros([BLOCK_S, MAIN], ACC)
    total_rest = tl.zeros([BLOCK_S, REST if REST else 1], ACC)
    for number in range(MAPS):
        height, width, first = map_of(table, number)
        for start in range(0, POINTS, BLOCK_S):
            point = start + tl.arange(0, BLOCK_S)
            exists = point < POINTS
            sample = number * POINTS + point
            weight = weight_of(weights + sample, peak, scale, exists, reference, ACC)
            offsets, masks, share_x, share_y, _, _ = samples_of(
                places + sample * 2, reference, reference_strides[3], height, width, first, exists,
                HEADS * PADDED, BORDER, ACC,
            )  # fmt: skip
            shares = shares_of(share_x, share_y)
            for i in tl.static_range(4):
                factor = (weight * shares[i])[:, None]
                total += factor * read(value, offsets[i], masks[i], 0, MAIN, ACC)
                if REST:
                    total_rest += factor * read(value, offsets[i], masks[i], MAIN, REST, ACC)
        if reference is not None:
            reference += reference_strides[2]
    out += row * CHANNELS
    pointers, real = channels_at(out, 0, MAIN, CHANNELS)
    store(pointers, tl.sum(total, axis=0), mask=real)
    if REST:
        pointers, real = channels_at(out, MAIN, REST, CHANNELS)
        store(pointers, tl.sum(total_rest, axis=0), mask=real)

"""The kernels of ELSA with its projection in Triton; see ``triton_projected``."""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from mmlocal.ops.backends import TRITON_INTERPRETED
from mmlocal.ops.elsa.triton_backward import grad_weight
from mmlocal.ops.elsa.triton_forward import add_tap, exp, neighbour, next_tap
from mmlocal.ops.triton_common import channels_of, locate, program, store, tuned, widen

# The smallest number of taps, features and pixels in a product of matrices.
BLOCK = 16
# How many bytes of the features of a pixel a program keeps, by the size of one feature. It reads
# the other features again for every block of taps. Large features take registers in the product,
# so fewer of them are kept.
KEPT = {2: 1024, 4: 128, 8: 128}
# The most bytes of features in a tile.
_ROOM = 2**15
# The interpreter would multiply the bits of bfloat16 as integers.
_WIDEN = tl.constexpr(TRITON_INTERPRETED)


def _pixels(args: dict) -> int:
    room = _ROOM // (args["BLOCK_K"] * args["features"].element_size())
    return max(BLOCK, min(args["TILE"] // args["BLOCK_C"], room))


_sized = triton.heuristics({"BLOCK_P": _pixels})


@triton.jit
def _read(features, stride, first, dims, inside, BLOCK_K: tl.constexpr):
    """Features ``(pixels, BLOCK_K)`` from ``first`` on. Features beyond the last are 0."""
    dim = first + tl.arange(0, BLOCK_K)[None, :]
    mask = inside[:, None] & (dim < dims)
    return tl.load(features[:, None] + dim.to(tl.int64) * stride, mask=mask, other=0.0)


@triton.jit
def _multiply(x, proj_weight, dims, tap, first, logits, TAPS: tl.constexpr):
    """Add the product of the features ``x`` from ``first`` on to the ``logits`` of some taps."""
    dim = first + tl.arange(0, x.shape[1])[:, None]
    mask = (tap < TAPS)[None, :] & (dim < dims)
    w = tl.load(proj_weight + (tap[None, :] * dims + dim), mask=mask, other=0.0)
    if _WIDEN:
        x, w = x.to(logits.dtype), w.to(logits.dtype)
    return tl.dot(x, w, logits, input_precision="ieee", out_dtype=logits.dtype)


@triton.jit
def _source(
    features, strides, dims, proj_weight, proj_bias, head, batch, index, inside,
    TAPS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The inputs of ``_logits`` for these pixels."""
    features += batch * strides[0] + index * strides[2]
    proj_weight += head * TAPS * dims
    proj_bias += head * TAPS
    x = _read(features, strides[1], 0, dims, inside, BLOCK_K)
    return x, features, strides[1], dims, proj_weight, proj_bias, inside


@triton.jit
def _logits(
    source, start,
    TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, ONE_BLOCK: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Logits ``(pixels, BLOCK_T)`` from tap ``start`` on. Logits beyond the last tap are -inf."""
    x, features, stride, dims, proj_weight, proj_bias, inside = source
    tap = start + tl.arange(0, BLOCK_T)
    logits = tl.zeros([inside.shape[0], BLOCK_T], DOT)
    logits = _multiply(x, proj_weight, dims, tap, 0, logits, TAPS)
    if not ONE_BLOCK:
        for first in tl.range(BLOCK_K, dims, BLOCK_K, num_stages=1):
            x = _read(features, stride, first, dims, inside, BLOCK_K)
            logits = _multiply(x, proj_weight, dims, tap, first, logits, TAPS)
    bias = tl.load(proj_bias + tap, mask=tap < TAPS, other=0.0).to(ACC)
    logits = logits.to(ACC) + bias[None, :]
    return tl.where((tap < TAPS)[None, :], logits, float("-inf"))


@triton.jit
def _softmax(
    source,
    TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, ONE_BLOCK: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Largest logit of each pixel, and the scale of its exponentials."""
    inside = source[6]
    peak = tl.full(inside.shape, float("-inf"), ACC)
    finite = tl.zeros(inside.shape, ACC)  # peak, or 0 where all logits so far are -inf
    total = tl.zeros(inside.shape, ACC)
    for start in range(0, TAPS, BLOCK_T):
        logits = _logits(source, start, TAPS, BLOCK_T, BLOCK_K, ONE_BLOCK, DOT, ACC)
        higher = tl.maximum(peak, tl.max(logits, axis=1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * exp(peak - finite) + tl.sum(exp(logits - finite[:, None]), axis=1)
        peak = higher
    return finite, 1.0 / total


@triton.jit
def _column(tile, column):
    """One column of ``(pixels, BLOCK_T)``."""
    # Unlike a masked sum, this lets the compiler lay out the channels in the order of reading.
    columns = tl.full([tile.shape[0], 1], 0, tl.int32) + column
    return tl.gather(tile, columns, axis=1).reshape([tile.shape[0]])


@tuned
@_sized
@triton.jit(do_not_specialize=["height", "width"])
def forward_kernel(
    value, value_strides, features, feature_strides, proj_weight, proj_bias,
    ghost_mul, ghost_add, out, out_strides, dims, heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, ONE_BLOCK: tl.constexpr,
    TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The ghost heads are ``(taps, channels)`` in ``ACC``."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    value += batch * value_strides[0] + channel[None, :] * value_strides[1]
    source = _source(
        features, feature_strides, dims, proj_weight, proj_bias, head, batch, index, inside,
        TAPS, BLOCK_K,
    )  # fmt: skip
    peak, scale = _softmax(source, TAPS, BLOCK_T, BLOCK_K, ONE_BLOCK, DOT, ACC)
    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    entry = channel
    for start in range(0, TAPS, BLOCK_T):
        logits = _logits(source, start, TAPS, BLOCK_T, BLOCK_K, ONE_BLOCK, DOT, ACC)
        weights = exp(logits - peak[:, None]) * scale[:, None]
        row, col = start // KERNEL, start % KERNEL
        for tap in range(start, tl.minimum(start + BLOCK_T, TAPS)):
            other, near = neighbour(row, col, index, y, x, inside, dilation, height, width, KERNEL)
            mask = near[:, None] & real[None, :]
            weight = _column(weights, tap - start)
            total = add_tap(
                total, weight, value + other[:, None] * value_strides[2],
                ghost_mul, ghost_add, entry, real, mask, ACC,
            )  # fmt: skip
            row, col = next_tap(row, col, KERNEL)
            entry += heads * PER_HEAD

    out += batch * out_strides[0] + channel[None, :] * out_strides[1]
    store(out + index[:, None] * out_strides[2], total, mask=inside[:, None] & real[None, :])


@tuned
@_sized
@triton.jit(do_not_specialize=["height", "width"])
def weights_kernel(
    features, feature_strides, proj_weight, proj_bias, peaks, scales, out,
    dims, heads, height, width,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, ONE_BLOCK: tl.constexpr,
    TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, _, _, inside = locate(tile, height * width, width, BLOCK_P)
    source = _source(
        features, feature_strides, dims, proj_weight, proj_bias, head, batch, index, inside,
        TAPS, BLOCK_K,
    )  # fmt: skip
    peak, scale = _softmax(source, TAPS, BLOCK_T, BLOCK_K, ONE_BLOCK, DOT, ACC)
    softmaxes = (batch * heads + head) * (height * width)
    store(peaks + softmaxes + index, peak, mask=inside)
    store(scales + softmaxes + index, scale, mask=inside)
    if out is not None:
        out += softmaxes * TAPS + index
        for start in range(0, TAPS, BLOCK_T):
            logits = _logits(source, start, TAPS, BLOCK_T, BLOCK_K, ONE_BLOCK, DOT, ACC)
            weights = exp(logits - peak[:, None]) * scale[:, None]
            tap = start + tl.arange(0, BLOCK_T)[None, :]
            pointers = out[:, None] + tap.to(tl.int64) * (height * width)
            store(pointers, weights, mask=inside[:, None] & (tap < TAPS))


@triton.jit
def _slopes(
    g, value, stride, ghost_mul, start, index, y, x, inside, channel, real,
    dilation, height, width, KERNEL: tl.constexpr, BLOCK_T: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients ``(pixels, BLOCK_T)`` of the weights from tap ``start`` on."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    column = tl.arange(0, BLOCK_T)[None, :]
    slopes = tl.zeros([inside.shape[0], BLOCK_T], ACC)
    row, col = start // KERNEL, start % KERNEL
    for tap in range(start, tl.minimum(start + BLOCK_T, TAPS)):
        other, near = neighbour(row, col, index, y, x, inside, dilation, height, width, KERNEL)
        pointers = value + other[:, None] * stride
        slope = grad_weight(g, pointers, ghost_mul, channel * TAPS + tap, near, real, ACC)
        slopes = tl.where(column == tap - start, slope[:, None], slopes)
        row, col = next_tap(row, col, KERNEL)
    return slopes


@tuned
@_sized
@triton.jit(do_not_specialize=["height", "width"])
def grad_logits_kernel(
    grad, grad_strides, value, value_strides, features, feature_strides, proj_weight,
    proj_bias, peaks, scales, ghost_mul, out, dims, heads, height, width, dilation,
    PER_HEAD: tl.constexpr, KERNEL: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, ONE_BLOCK: tl.constexpr,
    TILE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL * KERNEL
    head, tile, batch = program(heads, tl.cdiv(height * width, BLOCK_P))
    index, y, x, inside = locate(tile, height * width, width, BLOCK_P)
    channel, real = channels_of(head, PER_HEAD, BLOCK_C)
    value += batch * value_strides[0] + channel[None, :] * value_strides[1]
    grad += batch * grad_strides[0] + channel[None, :] * grad_strides[1]
    grad += index[:, None] * grad_strides[2]
    g = widen(tl.load(grad, mask=inside[:, None] & real[None, :], other=0.0), ACC)
    source = _source(
        features, feature_strides, dims, proj_weight, proj_bias, head, batch, index, inside,
        TAPS, BLOCK_K,
    )  # fmt: skip
    softmaxes = (batch * heads + head) * (height * width) + index
    peak = tl.load(peaks + softmaxes, mask=inside, other=0.0)
    scale = tl.load(scales + softmaxes, mask=inside, other=0.0)

    # The gradient of the softmax: w * (dw - mean), mean = <w, dw>.
    mean = tl.zeros([BLOCK_P], ACC)
    for start in range(0, TAPS, BLOCK_T):
        logits = _logits(source, start, TAPS, BLOCK_T, BLOCK_K, ONE_BLOCK, DOT, ACC)
        slopes = _slopes(
            g, value, value_strides[2], ghost_mul, start, index, y, x, inside, channel, real,
            dilation, height, width, KERNEL, BLOCK_T, ACC,
        )  # fmt: skip
        mean += tl.sum(exp(logits - peak[:, None]) * slopes, axis=1)
    mean *= scale
    out += ((batch * (height * width) + index) * heads + head) * TAPS
    for start in range(0, TAPS, BLOCK_T):
        logits = _logits(source, start, TAPS, BLOCK_T, BLOCK_K, ONE_BLOCK, DOT, ACC)
        slopes = _slopes(
            g, value, value_strides[2], ghost_mul, start, index, y, x, inside, channel, real,
            dilation, height, width, KERNEL, BLOCK_T, ACC,
        )  # fmt: skip
        weights = exp(logits - peak[:, None]) * scale[:, None]
        tap = start + tl.arange(0, BLOCK_T)[None, :]
        mask = inside[:, None] & (tap < TAPS)
        store(out[:, None] + tap, weights * (slopes - mean[:, None]), mask=mask)

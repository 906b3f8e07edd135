"""Shared by the Triton kernels of all ops: tiles, their sizes, sums over programs."""

# Kernels take pointers, numbers and constants of Triton's own language.
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlocal.ops.backends import TRITON_INTERPRETED

# With a limit of registers, even the largest, NVIDIA's compiler moves none of them to memory in
# order to run more programs at once. Triton refuses a limit for AMD's GPUs.
REGISTERS = {} if torch.version.hip else dict(maxnreg=255)
# TILE is how many numbers the (pixels, channels) tile of a program has. The first entry is used
# where nothing is measured: in the interpreter, and where results must be deterministic.
_CONFIGS = [
    triton.Config({"TILE": tile}, num_warps=warps, **REGISTERS)
    for tile, warps in ((2048, 4), (1024, 4), (1024, 2), (4096, 8))
]
# The most partial sums for the gradient of a table, and the fewest pixels that each of them covers.
_MAX_SPLITS = 512
_SPLIT_PIXELS = 512


def _prune(configs: list[triton.Config], *_, **__) -> list[triton.Config]:
    # A tile size decides the order of sums, so a faster one may differ in the last digit.
    return configs[:1] if torch.are_deterministic_algorithms_enabled() else configs


# A kernel is measured once for each of these constants, and not again for other maps or batches.
tuned = triton.autotune(
    configs=_CONFIGS[:1] if TRITON_INTERPRETED else _CONFIGS,
    key=["PER_HEAD", "KERNEL", "BLOCK_K"],  # a kernel may lack some of them
    prune_configs_by={"early_config_prune": _prune},
)


def block_c(per_head: int) -> int:
    """Return the channels of a tile: all channels of a head, rounded up to a power of 2."""
    return triton.next_power_of_2(max(1, per_head))


# BLOCK_P is the number of pixels of a tile.
sized = triton.heuristics({"BLOCK_P": lambda args: max(1, args["TILE"] // args["BLOCK_C"])})


def accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """Return the dtype to compute in, for PyTorch and for Triton."""
    if dtype == torch.float64:
        return torch.float64, tl.float64
    return torch.float32, tl.float32


def programs(pixels: int, others: int) -> Callable[[dict], tuple[int]]:
    """Return the grid with ``others`` programs for each tile of ``pixels``."""
    return lambda args: (triton.cdiv(pixels, args["BLOCK_P"]) * others,)


def splits_of(pixels: int) -> int:
    """Return the number of partial sums over ``pixels``, the pixels of the whole batch."""
    return min(_MAX_SPLITS, triton.cdiv(pixels, _SPLIT_PIXELS))


def add_up(partial: Tensor | None, like: Tensor | None) -> Tensor | None:
    """Sum ``(splits, ...)`` to the shape and dtype of ``like``. Return ``None`` for ``None``."""
    if partial is None or like is None:
        return None
    return partial.sum(dim=0).view(like.shape).to(like.dtype)


@triton.jit
def store(pointers, x, mask):
    """``tl.store`` by way of float32: the interpreter stores float64 as bfloat16 wrongly."""
    if pointers.dtype.element_ty != tl.float64:
        x = x.to(tl.float32)
    tl.store(pointers, x, mask=mask)


@triton.jit
def widen(x, ACC: tl.constexpr):
    """``x`` in ``ACC``. A bfloat16 is the upper half of a float32."""
    if x.dtype == tl.bfloat16 and tl.float32 == ACC:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    return x.to(ACC)


@triton.jit
def within(x, size):
    """Whether ``0 <= x < size``, by one comparison: without a sign, negative numbers are large."""
    return x.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit
def locate(tile, count, width, BLOCK_P: tl.constexpr):
    """Index, row and column of the pixels of a tile, and whether they exist."""
    index = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    return index.to(tl.int64), index // width, index % width, index < count


@triton.jit
def channels_of(head, PER_HEAD: tl.constexpr, BLOCK_C: tl.constexpr):
    """The channels of a head, and which of them exist."""
    channel = tl.arange(0, BLOCK_C)
    return head.to(tl.int64) * PER_HEAD + channel, channel < PER_HEAD


@triton.jit
def program(inner, middle):
    """The three indices of this program, innermost first. The outermost one is int64."""
    pid = tl.program_id(0)
    return pid % inner, pid // inner % middle, (pid // inner // middle).to(tl.int64)


@triton.jit
def share(split, splits, tiles):
    """The range of ``tiles`` that belongs to one of ``splits`` programs."""
    size = tl.cdiv(tiles, splits)
    return split * size, tl.minimum((split + 1) * size, tiles)

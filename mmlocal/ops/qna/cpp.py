"""The QnA op in C++ for CPUs. ``mmlocal/ops/csrc/qna_tiling.h`` explains the method.

The kernels read channels-last maps in place. Other maps are copied. Half precision is converted to
float32 and back. In addition to inputs and outputs, the forward pass holds only tables and one tile
per thread. The backward pass holds two maps of ``queries * heads`` numbers per window, and one map
of ``queries * heads`` bytes per window.

The exponentials are relative to the largest score of a map, and convolutions add up the windows of
a tile. Infinity or NaN would reach windows that do not hold it, so ``eager`` takes such calls.
"""

from __future__ import annotations

import math
from ctypes import c_bool, c_int64
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.cpp_common import PARTS, Output, computation_dtype, to_pixels
from mmlocal.ops.extension import Arguments, Flags, Map, QueryMap, Table, fields, loaded, round_up
from mmlocal.ops.layout import new_map
from mmlocal.ops.qna import eager
from mmlocal.ops.qna.reference import output_size

# exp(score) / 2^K stays in range up to this magnitude of the largest score. Beyond it, scores are
# taken relative to the largest one. The difference is exact for all scores that count.
_LARGE = 256.0


class QnaPeak(Arguments):
    """``QnaPeak`` of ``kernels.h``."""

    _fields_: ClassVar = [
        *fields(c_int64, "batch height width tables parts"),
        *fields(Map, "scores"),
        *fields(Table, "peak"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        return {
            "scores": (self.batch, self.height, self.width, self.tables),
            "peak": (self.batch, self.parts, round_up(self.tables, lanes)),
        }


class Qna(Arguments):
    """``Qna`` of ``kernels.h``."""

    _fields_: ClassVar = [
        *fields(c_int64, "batch channels height width out_height out_width"),
        *fields(c_int64, "queries heads kernel stride padding parts"),
        *fields(c_bool, "sum_queries"),
        *fields(Map, "value scores"),
        *fields(QueryMap, "grad"),
        *fields(Table, "shift power rel mix rel_pos tap_weight"),
        *fields(QueryMap, "out"),
        *fields(Map, "inverse mean"),
        *fields(Flags, "exact exact_rows"),
        *fields(Map, "grad_value grad_scores"),
        *fields(Table, "sum_rel sum_mix sum_exact_rel sum_exact_mix"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        tokens = (self.batch, self.height, self.width)
        windows = (self.batch, self.out_height, self.out_width)
        outputs = (self.batch, 1 if self.sum_queries else self.queries, *windows[1:], self.channels)
        taps, tables = self.kernel**2, self.queries * self.heads
        padded = round_up(tables, lanes)
        rel = (taps, padded)
        mix = (taps, round_up(self.channels, lanes) // lanes, self.queries, lanes)
        return (
            dict.fromkeys(("value", "grad_value"), (*tokens, self.channels))
            | dict.fromkeys(("scores", "grad_scores"), (*tokens, tables))
            | dict.fromkeys(("grad", "out"), outputs)
            | dict.fromkeys(("inverse", "mean"), (*windows, padded))
            | dict.fromkeys(("shift", "power"), (self.batch, padded))
            | dict.fromkeys(("rel_pos", "tap_weight"), (tables, taps))
            | dict.fromkeys(("sum_exact_rel", "sum_exact_mix"), (self.parts, tables, taps))
            | {"exact": (*windows, tables), "exact_rows": windows[:2]}
            | {"rel": rel, "sum_rel": (self.parts, *rel)}
            | {"mix": mix, "sum_mix": (self.parts, *mix)}
        )


def _below_infinity(x: Tensor) -> bool:
    return x.numel() == 0 or bool(x.amax() < math.inf)  # false for NaN


class _Call:
    """The inputs of one call in the form of ``kernels.h``."""

    def __init__(
        self,
        value: Tensor,
        scores: Tensor,
        rel_pos: Tensor | None,
        tap_weight: Tensor | None,
        num_queries: int,
        kernel_size: int,
        stride: int,
        padding: int,
        sum_queries: bool,
    ) -> None:
        self.extension = loaded()
        self.dtype = computation_dtype(value)
        self.lanes = self.extension.lanes(self.dtype)
        batch, self.channels, height, width = value.shape
        self.queries, self.tables = num_queries, scores.shape[1]
        self.taps = kernel_size**2
        self.size = [output_size(n, kernel_size, stride, padding) for n in (height, width)]
        self.sum_queries = sum_queries
        self.padded = round_up(self.tables, self.lanes)

        pixels = to_pixels(scores, self.dtype)
        map_size = dict(batch=batch, height=height, width=width)
        peak = pixels.new_full((batch, PARTS, self.padded), -math.inf)
        self.extension.run(
            "qna_peak",
            QnaPeak,
            self.dtype,
            **map_size,
            tables=self.tables,
            parts=PARTS,
            scores=pixels,
            peak=peak,
        )
        peak = peak.amax(dim=1)
        rel_pos, self.weight = self._table(rel_pos), self._table(tap_weight)
        weight = None if self.weight is None else self.weight.abs()
        numbers = (peak, rel_pos, weight)
        self.is_finite = all(_below_infinity(x) for x in numbers if x is not None)
        peak = peak.masked_fill(peak == -math.inf, 0.0)
        large = peak.abs() > _LARGE

        if rel_pos is None:
            self.rel = pixels.new_ones(self.tables, self.taps)
        else:
            table = rel_pos.double()
            most = table.amax(dim=1, keepdim=True)
            most = most.masked_fill(most == -math.inf, 0.0)
            self.rel = (table - most).exp().to(self.dtype)
        rel = F.pad(self.rel.t(), (0, self.padded - self.tables), value=1.0).contiguous()
        self.mix = self._spread(self.rel if self.weight is None else self.rel * self.weight)
        self.inputs: dict[str, int | Tensor | None] = dict(
            **map_size,
            channels=self.channels,
            out_height=self.size[0],
            out_width=self.size[1],
            queries=num_queries,
            heads=self.tables // num_queries,
            kernel=kernel_size,
            stride=stride,
            padding=padding,
            parts=PARTS,
            sum_queries=sum_queries,
            value=to_pixels(value, self.dtype),
            scores=pixels,
            shift=peak.masked_fill(~large, 0.0),
            power=(peak * math.log2(math.e)).round().masked_fill(large, 0.0),
            rel=rel,
            mix=self.mix,
            rel_pos=rel_pos,
            tap_weight=self.weight,
        )

    def _table(self, table: Tensor | None) -> Tensor | None:
        return None if table is None else table.to(self.dtype).flatten(1).contiguous()

    def _spread(self, table: Tensor) -> Tensor:
        """Return ``(tables, taps)`` as ``(taps, vectors of channels, queries, lanes)``."""
        table = table.view(self.queries, -1, self.taps)
        table = table.repeat_interleave(self.channels // table.shape[1], dim=1)
        table = F.pad(table, (0, 0, 0, -self.channels % self.lanes))
        return table.unflatten(1, (-1, self.lanes)).permute(3, 1, 0, 2).contiguous()

    def gather(self, spread: Tensor) -> Tensor:
        """Undo ``_spread``, summing over the channels of each head: ``(tables, taps)``."""
        table = spread.permute(2, 1, 3, 0).flatten(1, 2)[:, : self.channels]
        heads = self.tables // self.queries
        return table.unflatten(1, (heads, -1)).sum(dim=2).reshape(self.tables, self.taps)

    def with_queries(self, pixels: Tensor) -> Tensor:
        """Return the output or its gradient as ``(B, queries or 1, H, W, C)``."""
        return pixels.unsqueeze(1) if self.sum_queries else pixels

    def run(self, function: str, **more: Tensor | None) -> None:
        self.extension.run(function, Qna, self.dtype, **self.inputs, **more)


def forward(
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None,
    tap_weight: Tensor | None,
    num_queries: int,
    kernel_size: int,
    stride: int,
    padding: int,
    sum_queries: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.qna.qna_attention`."""
    args = (value, scores, rel_pos, tap_weight, num_queries, kernel_size, stride, padding)
    call = _Call(*args, sum_queries)
    if not call.is_finite:
        return eager.forward(*args, sum_queries)
    queries = () if sum_queries else (num_queries,)
    shape = (value.shape[0], *queries, value.shape[1], *call.size)
    if value.numel() == 0:
        return new_map(value, shape)
    out = Output(value, shape, call.dtype)
    call.run("qna_forward", out=call.with_queries(out.pixels))
    return out.finish()


def backward(
    grad: Tensor,
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None,
    tap_weight: Tensor | None,
    num_queries: int,
    kernel_size: int,
    stride: int,
    padding: int,
    sum_queries: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``value, scores, rel_pos, tap_weight``, ``None`` where not needed."""
    args = (value, scores, rel_pos, tap_weight, num_queries, kernel_size, stride, padding)
    call = _Call(*args, sum_queries)
    # Tokens that belong to no window are checked here, because no window shows whether they are
    # finite.
    covered = stride <= kernel_size and all(
        (windows - 1) * stride + kernel_size >= tokens + padding
        for windows, tokens in zip(call.size, value.shape[2:], strict=True)
    )
    if not call.is_finite or not (covered or value.isfinite().all()):
        return eager.backward(grad, *args, sum_queries, needs_grad)
    need_value, need_scores, need_rel_pos, need_weight = needs_grad
    windows = (value.shape[0], *call.size)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=call.dtype)

    grad_value = Output(value, value.shape, call.dtype) if need_value else None
    grad_scores = Output(scores, scores.shape, call.dtype) if need_scores else None
    sums = {}
    if need_rel_pos or need_weight:
        sums = dict(
            sum_rel=zeros(PARTS, call.taps, call.padded),
            sum_mix=zeros(PARTS, *call.mix.shape),
            sum_exact_rel=zeros(PARTS, call.tables, call.taps),
            sum_exact_mix=zeros(PARTS, call.tables, call.taps),
        )
    if value.numel():
        mean = torch.empty(*windows, call.padded, dtype=call.dtype)
        call.run(
            "qna_backward",
            grad=call.with_queries(to_pixels(grad, call.dtype)),
            inverse=torch.empty_like(mean),
            mean=mean,
            exact=torch.zeros(*windows, call.tables, dtype=torch.uint8),
            exact_rows=torch.zeros(windows[:2], dtype=torch.uint8),
            grad_value=None if grad_value is None else grad_value.pixels,
            grad_scores=None if grad_scores is None else grad_scores.pixels,
            **sums,
        )
        # This covers the products of gradient and value in all windows.
        if not mean.sum().isfinite():
            return eager.backward(grad, *args, sum_queries, needs_grad)

    def to_table(grads: Tensor, table: Tensor) -> Tensor:
        return grads.reshape(table.shape).to(table.dtype).contiguous()

    grad_rel_pos = grad_weight = None
    if sums:
        rel, mix, exact_rel, exact_mix = (x.sum(dim=0) for x in sums.values())
        mix = call.rel * call.gather(mix)
        if need_weight and tap_weight is not None:
            grad_weight = to_table(mix + exact_mix, tap_weight)
        if need_rel_pos and rel_pos is not None:
            weighted = mix if call.weight is None else mix * call.weight
            rel = call.rel * rel.t()[: call.tables]
            grad_rel_pos = to_table(weighted - rel + exact_rel, rel_pos)

    return (
        None if grad_value is None else grad_value.finish(),
        None if grad_scores is None else grad_scores.finish(),
        grad_rel_pos,
        grad_weight,
    )

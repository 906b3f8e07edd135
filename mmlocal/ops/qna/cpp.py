"""The QnA op in C++ for CPUs. ``mmlocal/ops/csrc/qna_tiling.h`` explains the method.

The kernels read channels-last maps in place. Other maps are copied. Half precision is converted to
float32 and back. In addition to inputs and outputs, the forward pass holds only tables and one tile
per thread. The backward pass holds two maps of ``queries * heads`` numbers per window, and sums of
the gradients of the tables.

The exponentials are relative to the largest score of a map, and convolutions add up the windows of
a tile. Infinity or NaN would reach windows that do not hold it, so ``eager`` takes such calls.
"""

from __future__ import annotations

from ctypes import c_bool, c_int64
from typing import ClassVar

import torch
from torch import Tensor

from mmlocal.ops.cpp_common import PARTS, Output, computation_dtype, to_pixels
from mmlocal.ops.extension import Arguments, Flags, Map, QueryMap, Table, fields, loaded, round_up
from mmlocal.ops.qna import eager
from mmlocal.ops.qna.reference import output_size


class Qna(Arguments):
    """``Qna`` of ``kernels.h``."""

    _fields_: ClassVar = [
        *fields(c_int64, "batch channels height width out_height out_width"),
        *fields(c_int64, "queries heads kernel stride padding parts"),
        *fields(c_bool, "sum_queries refused"),
        *fields(Map, "value scores"),
        *fields(QueryMap, "grad"),
        *fields(Table, "rel_pos tap_weight"),
        *fields(QueryMap, "out"),
        *fields(Map, "inverse mean"),
        *fields(Flags, "exact_rows"),
        *fields(Map, "grad_value grad_scores"),
        *fields(Table, "grad_rel_pos grad_tap_weight tables sums"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        tokens = (self.batch, self.height, self.width)
        windows = (self.batch, self.out_height, self.out_width)
        outputs = (self.batch, 1 if self.sum_queries else self.queries, *windows[1:], self.channels)
        count, taps = self.queries * self.heads, self.kernel**2
        padded, mixed = round_up(count, lanes), self.queries * round_up(self.channels, lanes)
        table = (count, self.kernel, self.kernel)
        return {
            "value": (*tokens, self.channels),
            "grad_value": (*tokens, self.channels),
            "scores": (*tokens, count),
            "grad_scores": (*tokens, count),
            "out": outputs,
            "grad": outputs,
            "rel_pos": table,
            "grad_rel_pos": table,
            "tap_weight": table,
            "grad_tap_weight": table,
            "inverse": (*windows, padded),
            "mean": (*windows, padded),
            "exact_rows": windows[:2],
            "tables": (self.batch * (self.parts + 2) * padded + taps * (padded + mixed),),
            "sums": (self.parts, taps * (3 * padded + mixed)),
        }


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
        self.dtype = computation_dtype(value)
        batch, channels, height, width = value.shape
        self.size = [output_size(n, kernel_size, stride, padding) for n in (height, width)]
        self.sum_queries = sum_queries
        self._call = loaded().prepare(
            Qna,
            self.dtype,
            batch=batch,
            channels=channels,
            height=height,
            width=width,
            out_height=self.size[0],
            out_width=self.size[1],
            queries=num_queries,
            heads=scores.shape[1] // num_queries,
            kernel=kernel_size,
            stride=stride,
            padding=padding,
            parts=PARTS,
            sum_queries=sum_queries,
        )
        self.shapes = self._call.shapes
        self._inputs = dict(
            value=to_pixels(value, self.dtype),
            scores=to_pixels(scores, self.dtype),
            rel_pos=self._table(rel_pos),
            tap_weight=self._table(tap_weight),
        )

    def _table(self, table: Tensor | None) -> Tensor | None:
        return None if table is None else table.to(self.dtype).contiguous()

    def empty(self, *names: str) -> dict[str, Tensor]:
        """Return memory for members of the structure."""
        return {name: torch.empty(self.shapes[name], dtype=self.dtype) for name in names}

    def with_queries(self, pixels: Tensor) -> Tensor:
        """Return the output or its gradient as ``(B, queries or 1, H, W, C)``."""
        return pixels.unsqueeze(1) if self.sum_queries else pixels

    def run(self, function: str, **more: Tensor | None) -> bool:
        """Call a function. Returns whether all numbers were finite."""
        done = self._call.run(function, **self._inputs, **self.empty("tables"), **more)
        return not done.refused


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
    queries = () if sum_queries else (num_queries,)
    out = Output(value, (value.shape[0], *queries, value.shape[1], *call.size), call.dtype)
    if not call.run("qna_forward", out=call.with_queries(out.pixels)):
        return eager.forward(*args, sum_queries)
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
    need_value, need_scores, *need_tables = needs_grad
    grad_value = Output(value, value.shape, call.dtype) if need_value else None
    grad_scores = Output(scores, scores.shape, call.dtype) if need_scores else None
    tables = {}
    if any(need_tables):
        tables = call.empty("sums", "grad_rel_pos", "grad_tap_weight")
    # Tokens that belong to no window are checked here, because no window shows whether they are
    # finite.
    covered = stride <= kernel_size and all(
        (windows - 1) * stride + kernel_size >= tokens + padding
        for windows, tokens in zip(call.size, value.shape[2:], strict=True)
    )
    if not (covered or value.isfinite().all()) or not call.run(
        "qna_backward",
        grad=call.with_queries(to_pixels(grad, call.dtype)),
        exact_rows=torch.zeros(call.shapes["exact_rows"], dtype=torch.uint8),
        grad_value=None if grad_value is None else grad_value.pixels,
        grad_scores=None if grad_scores is None else grad_scores.pixels,
        **call.empty("inverse", "mean"),
        **tables,
    ):
        return eager.backward(grad, *args, sum_queries, needs_grad)
    return (
        None if grad_value is None else grad_value.finish(),
        None if grad_scores is None else grad_scores.finish(),
        *(
            tables[f"grad_{name}"].to(table.dtype) if need and table is not None else None
            for need, name, table in zip(
                need_tables, ("rel_pos", "tap_weight"), (rel_pos, tap_weight), strict=True
            )
        ),
    )

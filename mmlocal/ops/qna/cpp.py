"""The QnA op in C++ for CPUs, see ``mmlocal/ops/csrc/qna_kernels.h`` for how it computes.

Works on channels-last maps, which are used as they are; other maps are copied. Half precision is
converted to float32 and back. Beside inputs and outputs, the forward pass holds only tables and a
tile per thread, the backward pass two maps of ``queries * heads`` numbers per window.

The exponentials are relative to the largest score of a map, and the tile adds up windows with
convolutions. Infinity or NaN would reach windows that do not hold it: ``eager`` takes such calls.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.extension import extension
from mmlocal.ops.layout import new_map, to_layout
from mmlocal.ops.qna import eager
from mmlocal.ops.qna.reference import output_size

# Parts in which the gradients of the tables are summed, whatever the number of threads.
_PARTS = 16
# exp(score) / 2^K stays in range up to here; larger scores are taken relative to the largest, from
# which those that count then differ by a number without rounding.
_LARGE = 256.0


def _pixels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``(..., C, H, W)`` as ``(..., H, W, C)`` with the channels innermost; a view if possible."""
    x = x.to(dtype).movedim(-3, -1)
    return x if x.stride(-1) == 1 else x.contiguous()


def _below_infinity(x: Tensor) -> bool:
    return x.numel() == 0 or bool(x.amax() < math.inf)  # false for NaN


class _Call:
    """The inputs of one call as the extension takes them; ``kernels.h`` says what they are."""

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
    ) -> None:
        self.dtype = torch.promote_types(value.dtype, torch.float32)
        self.queries = num_queries
        self.channels = value.shape[1]
        self.tables = scores.shape[1]
        self.taps = kernel_size**2
        self.size = [output_size(n, kernel_size, stride, padding) for n in value.shape[2:]]
        self.lanes = extension.lanes(self.dtype == torch.float64)
        self.padded = self.tables + -self.tables % self.lanes

        pixels = _pixels(scores, self.dtype)
        peak = pixels.new_full((pixels.shape[0], _PARTS, self.padded), -math.inf)
        extension.qna_peak(pixels, peak)
        peak = peak.amax(dim=1)
        self.rel_pos = self._table(rel_pos)
        self.weight = self._table(tap_weight)
        weight = None if self.weight is None else self.weight.abs()
        numbers = (peak, self.rel_pos, weight)
        self.is_finite = all(_below_infinity(x) for x in numbers if x is not None)
        peak = peak.masked_fill(peak == -math.inf, 0.0)
        large = peak.abs() > _LARGE
        shift = peak.masked_fill(~large, 0.0)
        power = (peak * math.log2(math.e)).round().masked_fill(large, 0.0)

        if rel_pos is None:
            self.rel = pixels.new_ones(self.tables, self.taps)
        else:
            table = self.rel_pos.double()
            most = table.amax(dim=1, keepdim=True)
            most = most.masked_fill(most == -math.inf, 0.0)
            self.rel = (table - most).exp().to(self.dtype)
        mix = self.rel if self.weight is None else self.rel * self.weight
        self.inputs = extension.QnaInputs(
            _pixels(value, self.dtype),
            pixels,
            shift,
            power,
            F.pad(self.rel.t(), (0, self.padded - self.tables), value=1.0).contiguous(),
            self._spread(mix),
            self.rel_pos,
            self.weight,
            num_queries,
            kernel_size,
            stride,
            padding,
            *self.size,
        )

    def _table(self, table: Tensor | None) -> Tensor | None:
        return None if table is None else table.to(self.dtype).flatten(1).contiguous()

    def _spread(self, table: Tensor) -> Tensor:
        """``(tables, taps)`` as ``(taps, vectors of channels, queries, lanes)``."""
        table = table.view(self.queries, -1, self.taps)
        table = table.repeat_interleave(self.channels // table.shape[1], dim=1)
        table = F.pad(table, (0, 0, 0, -self.channels % self.lanes))
        return table.unflatten(1, (-1, self.lanes)).permute(3, 1, 0, 2).contiguous()

    def gather(self, spread: Tensor) -> Tensor:
        """The sum over the channels of each head of what ``_spread`` made; to its shape."""
        table = spread.permute(2, 1, 3, 0).flatten(1, 2)[:, : self.channels]
        heads = self.tables // self.queries
        return table.unflatten(1, (heads, -1)).sum(dim=2).reshape(self.tables, self.taps)

    def windows(self, like: Tensor) -> list[int]:
        """Batch size, height and width of the output."""
        return [like.shape[0], *self.size]


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
    settings = (num_queries, kernel_size, stride, padding)
    call = _Call(value, scores, rel_pos, tap_weight, *settings)
    if not call.is_finite:
        return eager.forward(value, scores, rel_pos, tap_weight, *settings, sum_queries)
    queries = () if sum_queries else (num_queries,)
    out = new_map(value, (value.shape[0], *queries, value.shape[1], *call.size))
    if out.numel() == 0:
        return out
    pixels = out.movedim(-3, -1)
    direct = call.dtype == out.dtype and pixels.stride(-1) == 1
    if not direct:
        pixels = pixels.new_empty(pixels.shape, dtype=call.dtype)
    extension.qna_forward(call.inputs, sum_queries, _with_queries(pixels, sum_queries))
    return out if direct else out.copy_(pixels.movedim(-1, -3))


def _with_queries(pixels: Tensor, sum_queries: bool) -> Tensor:
    return pixels.unsqueeze(1) if sum_queries else pixels


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
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``value, scores, rel_pos, tap_weight``, ``None`` where not needed."""
    args = (value, scores, rel_pos, tap_weight, num_queries, kernel_size, stride, padding)
    call = _Call(*args)
    # No window shows whether a token is finite that belongs to none.
    covered = stride <= kernel_size and all(
        (windows - 1) * stride + kernel_size >= tokens + padding
        for windows, tokens in zip(call.size, value.shape[2:], strict=True)
    )
    if not call.is_finite or not (covered or value.isfinite().all()):
        return eager.backward(grad, *args, sum_queries, needs_grad)
    need_value, need_scores, need_rel_pos, need_weight = needs_grad
    batch, height, width = call.windows(value)
    windows = batch * height * width
    options = dict(dtype=call.dtype)
    grads = [
        torch.zeros(x.permute(0, 2, 3, 1).shape, **options) if need else None
        for x, need in ((value, need_value), (scores, need_scores))
    ]
    sums = None
    if need_rel_pos or need_weight:
        channels = call.channels + -call.channels % call.lanes
        sums = [
            torch.zeros(
                _PARTS, call.taps, channels // call.lanes, num_queries, call.lanes, **options
            ),
            torch.zeros(_PARTS, call.taps, call.padded, **options),
            torch.zeros(_PARTS, call.tables, call.taps, **options),
            torch.zeros(_PARTS, call.tables, call.taps, **options),
        ]
    if value.numel():
        mean = torch.empty(windows * call.padded, **options)
        extension.qna_backward(
            _with_queries(_pixels(grad, call.dtype), sum_queries),
            call.inputs,
            sum_queries,
            torch.empty(windows * call.padded + call.lanes, **options),
            mean,
            torch.zeros(batch * height, dtype=torch.uint8),
            sums,
            *grads,
        )
        # The products of gradient and value, of all windows.
        if not mean.sum().isfinite():
            return eager.backward(grad, *args, sum_queries, needs_grad)

    def to_table(grads: Tensor, table: Tensor) -> Tensor:
        return grads.reshape(table.shape).to(table.dtype).contiguous()

    grad_rel_pos = grad_weight = None
    if sums is not None:
        mix, rel, exact_mix, exact_rel = (x.sum(dim=0) for x in sums)
        mix = call.rel * call.gather(mix)
        if need_weight:
            grad_weight = to_table(mix + exact_mix, tap_weight)
        if need_rel_pos:
            weighted = mix if call.weight is None else mix * call.weight
            rel = call.rel * rel.t()[: call.tables]
            grad_rel_pos = to_table(weighted - rel + exact_rel, rel_pos)

    def to_map(grads: Tensor | None, like: Tensor) -> Tensor | None:
        return None if grads is None else to_layout(grads.permute(0, 3, 1, 2).to(like.dtype), like)

    return to_map(grads[0], value), to_map(grads[1], scores), grad_rel_pos, grad_weight

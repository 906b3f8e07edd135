"""Deformable attention in C++ for CPUs, with the channels of a head in vectors.

The kernels in ``mmlocal/ops/csrc`` read a copy of the values of one sample, in which a head's
channels of a pixel fill whole vectors. In addition to inputs and outputs, there is this copy, and
its gradient in the backward pass. Half precision is converted to float32 and back, sample by
sample.
"""

from __future__ import annotations

from ctypes import c_bool, c_int64
from typing import ClassVar

import torch
from torch import Tensor

from mmlocal.ops.cpp_common import computation_dtype
from mmlocal.ops.extension import Arguments, Counts, Table, fields, loaded, round_up
from mmlocal.ops.layout import new_map

# The queries of a task. Many share the pixels that they read, few spread over many threads.
_MOST_QUERIES, _FEWEST_QUERIES = 512, 16


class Deformable(Arguments):
    """``Deformable`` of ``kernels.h``."""

    _fields_: ClassVar = [
        *fields(c_int64, "queries heads maps points head_dims channels rows block"),
        *fields(c_bool, "border softmax"),
        *fields(Counts, "sizes"),
        *fields(Table, "value points_xy positions weights grad out"),
        *fields(Table, "grad_value grad_points grad_positions grad_weights"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        value = (self.heads, self.rows, round_up(self.head_dims, lanes))
        points = (self.queries, self.maps, 2)
        weights = (self.queries, self.heads, self.maps, self.points)
        out = (self.queries, self.heads * self.head_dims)
        return (
            {"sizes": (self.maps, 3)}
            | dict.fromkeys(("value", "grad_value"), value)
            | dict.fromkeys(("points_xy", "grad_points"), points)
            | dict.fromkeys(("positions", "grad_positions"), (*weights, 2))
            | dict.fromkeys(("weights", "grad_weights"), weights)
            | dict.fromkeys(("grad", "out"), out)
        )


class Packed:
    """Values of one sample after the other in the form of ``kernels.h``, and settings of a call.

    Args:
        value: ``(B, S, heads, channels per head)``.
        weights: ``(B, Q, heads, maps, points)``.
        spatial_shapes: heights and widths.
        padding_mode: ``"zeros"`` or ``"border"``.
        softmax: whether the weights are logits.
    """

    def __init__(
        self,
        value: Tensor,
        weights: Tensor,
        spatial_shapes: list[int],
        padding_mode: str,
        softmax: bool,
    ) -> None:
        self._extension = loaded()
        self.dtype = computation_dtype(value)
        pairs = list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))
        sizes, first = [], 0
        for height, width in pairs:
            sizes.append((height, width, first))
            first += height * width + 1  # a row of zeros after each map
        _, queries, heads, maps, points = weights.shape
        channels = round_up(value.shape[3], self._extension.lanes(self.dtype))
        tasks = 8 * self._extension.threads()
        self._members: dict[str, int | Tensor] = dict(
            queries=queries,
            heads=heads,
            maps=maps,
            points=points,
            head_dims=value.shape[3],
            channels=channels,
            rows=first,
            block=min(_MOST_QUERIES, max(_FEWEST_QUERIES, queries * heads // tasks)),
            border=padding_mode == "border",
            softmax=softmax,
            sizes=torch.tensor(sizes),
        )
        self._sizes = sizes
        self._value = torch.zeros(heads, first, channels, dtype=self.dtype)

    def zeros(self) -> Tensor:
        """Return the gradient of the packed values before the kernel adds to it."""
        return torch.zeros_like(self._value)

    def _parts(self, packed: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the memory of each map in both forms."""
        parts, start = [], 0
        for height, width, first in self._sizes:
            count = height * width
            own = packed[:, first : first + count, : rows.shape[2]]
            parts.append((own.transpose(0, 1), rows[start : start + count]))
            start += count
        return parts

    def run(self, function: str, value: Tensor, **more: Tensor | None) -> None:
        """Call a function of the library on one sample, ``(S, heads, channels per head)``."""
        for own, rows in self._parts(self._value, value):
            own.copy_(rows)
        self._extension.run(
            function, Deformable, self.dtype, value=self._value, **self._members, **more
        )

    def unpack(self, packed: Tensor, value: Tensor) -> None:
        """Write a gradient of the kernel to ``(S, heads, channels per head)``."""
        for own, rows in self._parts(packed, value):
            rows.copy_(own)


def backward_samples(
    grad: Tensor,
    value: Tensor,
    reference_points: Tensor | None,
    positions: Tensor,
    weights: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
    needs_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``value, reference_points, positions, weights``, ``None`` where not needed.

    With reference points, ``positions`` are offsets and ``weights`` are logits.
    """
    inputs = (value, reference_points, positions, weights)
    grads = [
        None
        if x is None or not need
        else new_map(x, x.shape)
        if x.dim() == 4
        else x.new_empty(x.shape)
        for x, need in zip(inputs, needs_grad, strict=True)
    ]
    call = Packed(value, weights, spatial_shapes, padding_mode, reference_points is not None)
    # The gradient of a reference point is a sum over the gradients of its offsets.
    asked = [*needs_grad[:2], needs_grad[2] or needs_grad[1], needs_grad[3]]
    names = ("grad_points", "grad_positions", "grad_weights")
    for b in range(len(value)):
        own_inputs = sample_of(call.dtype, b, *inputs[1:])
        results: dict[str, Tensor | None] = {}
        for name, x, out, need in zip(names, own_inputs, grads[1:], asked[1:], strict=True):
            own = None if out is None else out[b]
            if x is not None and need and (own is None or not _is_plain(own, call.dtype)):
                own = torch.empty(x.shape, dtype=call.dtype)
            results[name] = own
        grad_value = call.zeros() if needs_grad[0] else None
        points_xy, own_positions, own_weights = own_inputs
        call.run(
            "deformable_backward",
            value[b],
            points_xy=points_xy,
            positions=own_positions,
            weights=own_weights,
            grad=sample_of(call.dtype, b, grad)[0],
            grad_value=grad_value,
            **results,
        )
        if grads[0] is not None and grad_value is not None:
            call.unpack(grad_value, grads[0][b])
        for out, own in zip(grads[1:], results.values(), strict=True):
            if out is not None and own is not None and own.data_ptr() != out[b].data_ptr():
                out[b] = own
    return tuple(grads)


def _is_plain(x: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == dtype and x.is_contiguous()


def sample_of(dtype: torch.dtype, b: int, *tensors: Tensor | None) -> list[Tensor | None]:
    """Return sample ``b`` of tensors, contiguous and in the dtype of the computation."""
    return [None if x is None else x[b].to(dtype).contiguous() for x in tensors]


def forward_samples(
    value: Tensor,
    reference_points: Tensor | None,
    positions: Tensor,
    weights: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
) -> Tensor:
    """Return the output. With reference points, ``positions`` are offsets, ``weights`` logits."""
    out = value.new_empty(len(value), weights.shape[1], value.shape[2] * value.shape[3])
    call = Packed(value, weights, spatial_shapes, padding_mode, reference_points is not None)
    for b in range(len(value)):
        own = out[b] if out.dtype == call.dtype else out[b].to(call.dtype)
        points_xy, own_positions, own_weights = sample_of(
            call.dtype, b, reference_points, positions, weights
        )
        call.run(
            "deformable_forward",
            value[b],
            points_xy=points_xy,
            positions=own_positions,
            weights=own_weights,
            out=own,
        )
        if own.dtype != out.dtype:
            out[b] = own
    return out


def forward(
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention`."""
    return forward_samples(
        value, None, sampling_locations, attention_weights, spatial_shapes, padding_mode
    )


def backward(
    grad: Tensor,
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
    needs_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``value, sampling_locations, attention_weights``, ``None`` where not needed."""
    need_value, *need_others = needs_grad
    grad_value, _, *others = backward_samples(
        grad,
        value,
        None,
        sampling_locations,
        attention_weights,
        spatial_shapes,
        padding_mode,
        [need_value, False, *need_others],
    )
    return grad_value, *others

"""The ELSA op in C++ for CPUs, with the channels of a pixel in vectors.

The kernels in ``mmlocal/ops/csrc`` read channels-last maps. They read a map in place if it is
channels-last and its channels fill whole vectors (16 floats with AVX-512). Other maps are copied.
Half precision is converted to float32 and back.
"""

from __future__ import annotations

from ctypes import c_bool, c_int64
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.cpp_common import PARTS, Output, computation_dtype, to_pixels
from mmlocal.ops.extension import Arguments, Map, Table, fields, loaded, round_up
from mmlocal.ops.layout import new_map, to_layout


class Elsa(Arguments):
    """``Elsa`` of ``kernels.h``."""

    _fields_: ClassVar = [
        *fields(c_int64, "batch height width heads head_dims kernel dilation parts"),
        *fields(c_bool, "softmax masked"),
        *fields(Map, "value attn grad"),
        *fields(Table, "mul add"),
        *fields(Map, "weights out grad_value grad_attn"),
        *fields(Table, "sum_mul sum_add"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        pixels, taps = (self.batch, self.height, self.width), self.kernel**2
        channels = round_up(self.heads * self.head_dims, lanes)
        table = (taps, channels)
        return (
            dict.fromkeys(("value", "grad", "out", "grad_value"), (*pixels, channels))
            | dict.fromkeys(("attn", "weights", "grad_attn"), (*pixels, self.heads * taps))
            | dict.fromkeys(("mul", "add"), table)
            | dict.fromkeys(("sum_mul", "sum_add"), (self.parts, *table))
        )


class _Call:
    """The inputs of one call in the form of ``kernels.h``."""

    def __init__(
        self,
        value: Tensor,
        attn: Tensor,
        ghost_mul: Tensor | None,
        ghost_add: Tensor | None,
        kernel_size: int,
        dilation: int,
        softmax: bool,
    ) -> None:
        self.extension = loaded()
        self.dtype = computation_dtype(value)
        self.lanes = self.extension.lanes(self.dtype)
        self.taps = kernel_size**2
        self.value = to_pixels(value, self.dtype, self.lanes)
        self.attn = to_pixels(attn, self.dtype)
        batch, channels, height, width = value.shape
        heads = attn.shape[1] // self.taps
        self.inputs: dict[str, int | Tensor | None] = dict(
            batch=batch,
            height=height,
            width=width,
            heads=heads,
            head_dims=channels // heads,
            kernel=kernel_size,
            dilation=dilation,
            parts=PARTS,
            softmax=softmax,
            value=self.value,
            attn=self.attn,
            mul=self._table(ghost_mul),
            add=self._table(ghost_add),
        )

    def _table(self, ghost: Tensor | None) -> Tensor | None:
        """Return ``(C, k, k)`` as ``(taps, padded channels)``."""
        if ghost is None:
            return None
        table = ghost.to(self.dtype).reshape(-1, self.taps).t()
        pad = -table.shape[1] % self.lanes
        return (F.pad(table, (0, pad)) if pad else table).contiguous()

    def run(self, function: str, **more: Tensor | None) -> None:
        self.extension.run(function, Elsa, self.dtype, **self.inputs, **more)


def _plain(x: Tensor) -> Tensor:
    return to_layout(x, x) if x.dim() == 4 else x.contiguous()


def forward(
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.elsa.elsa_attention`."""
    if value.numel() == 0:
        return new_map(value, value.shape)
    call = _Call(value, attn, ghost_mul, ghost_add, kernel_size, dilation, softmax)
    out = Output(value, value.shape, call.dtype, call.lanes)
    call.run("elsa_forward", out=out.pixels)
    return out.finish()


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
) -> tuple[Tensor | None, ...]:
    """Gradients of ``value, attn, ghost_mul, ghost_add``, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    if value.numel() == 0:
        inputs = (value, attn, ghost_mul, ghost_add)
        return tuple(
            None if x is None or not need else torch.zeros_like(_plain(x))
            for x, need in zip(inputs, needs_grad, strict=True)
        )
    call = _Call(value, attn, ghost_mul, ghost_add, kernel_size, dilation, softmax)
    need_value, need_attn, *need_ghosts = needs_grad
    grad_value = Output(value, value.shape, call.dtype, call.lanes) if need_value else None
    # One map holds the softmax and then its gradient. It is the copy of the logits if there is one.
    weights = call.attn
    if softmax and call.attn.data_ptr() == attn.data_ptr():
        weights = torch.empty(call.attn.shape, dtype=call.dtype)
    grad_attn = None
    if need_attn:
        grad_attn = weights if softmax else torch.empty(call.attn.shape, dtype=call.dtype)
    sums = [
        call.value.new_zeros(PARTS, call.taps, call.value.shape[3]) if need else None
        for need in need_ghosts
    ]
    call.run(
        "elsa_backward",
        grad=to_pixels(grad, call.dtype, call.lanes),
        weights=weights,
        grad_value=None if grad_value is None else grad_value.pixels,
        grad_attn=grad_attn,
        sum_mul=sums[0],
        sum_add=sums[1],
    )

    def ghost_grad(sums: Tensor | None, ghost: Tensor | None) -> Tensor | None:
        if sums is None or ghost is None:
            return None
        table = sums.sum(dim=0)[:, : len(ghost)].t().contiguous()
        return table.view(ghost.shape).to(ghost.dtype)

    return (
        None if grad_value is None else grad_value.finish(),
        None if grad_attn is None else to_layout(grad_attn.movedim(-1, 1).to(attn.dtype), attn),
        ghost_grad(sums[0], ghost_mul),
        ghost_grad(sums[1], ghost_add),
    )

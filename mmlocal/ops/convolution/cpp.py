"""The grouped convolution in C++ for CPUs, with whole groups of channels in vectors.

The kernels in ``mmlocal/ops/csrc`` read channels-last maps. They read a map in place if it is
channels-last and its channels fill whole vectors (16 floats with AVX-512). Other maps are copied.
Half precision is converted to float32 and back. If a weight or a gradient of the weight is not
finite, PyTorch computes the result again, because the kernels multiply the zeros around the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_bool, c_int64
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmlocal.ops.convolution import eager
from mmlocal.ops.convolution.reference import GROUP_WIDTH, output_shape
from mmlocal.ops.cpp_common import PARTS, Output, computation_dtype, to_pixels
from mmlocal.ops.extension import Arguments, Map, Table, fields, loaded, round_up


class GroupedConvolution(Arguments):
    """``GroupedConvolution`` of ``kernels.h``."""

    _fields_: ClassVar = [
        *fields(c_int64, "batch channels height width out_height out_width"),
        *fields(c_int64, "kernel padding dilation parts"),
        *fields(c_bool, "transposed refused"),
        *fields(Map, "x grad out"),
        *fields(Table, "weight bias grad_weight grad_bias tables sums"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        channels = round_up(self.channels, lanes)
        out = (self.batch, self.out_height, self.out_width, channels)
        weight = (self.channels, GROUP_WIDTH, self.kernel, self.kernel)
        tables = _tables(self.channels, self.kernel, lanes)
        return {
            "x": (self.batch, self.height, self.width, channels),
            **dict.fromkeys(("grad", "out"), out),
            **dict.fromkeys(("weight", "grad_weight"), weight),
            **dict.fromkeys(("bias", "grad_bias"), (self.channels,)),
            "tables": tables,
            "sums": (self.parts, *tables),
        }


def _tables(channels: int, kernel: int, lanes: int) -> tuple[int, ...]:
    """Return the shape of the tables of all vectors. A vector has at least one group."""
    lanes = max(lanes, GROUP_WIDTH)
    return round_up(channels, lanes) // lanes, GROUP_WIDTH * kernel**2 + 1, lanes


class _Call:
    """One call in the form of ``kernels.h``."""

    def __init__(self, x: Tensor, weight: Tensor, padding: int, dilation: int) -> None:
        self.extension = loaded()
        self.dtype = computation_dtype(x)
        self.lanes = self.extension.lanes(self.dtype)
        self.kernel = weight.shape[2]
        self.weight = weight.to(self.dtype).contiguous()
        self.tables = _tables(len(weight), self.kernel, self.lanes)
        self.padding = padding
        self.dilation = dilation if self.kernel > 1 else 1

    def pixels(self, x: Tensor) -> Tensor:
        return to_pixels(x, self.dtype, self.lanes)

    def run(self, function: str, x: Tensor, out_size: Sequence[int], **more: Any) -> bool:
        """Return whether the results are right, because all numbers are finite."""
        batch, height, width, _ = x.shape
        settings = dict(padding=self.padding, dilation=self.dilation) | more
        call: Any = self.extension.run(
            function,
            GroupedConvolution,
            self.dtype,
            batch=batch,
            channels=len(self.weight),
            height=height,
            width=width,
            out_height=out_size[0],
            out_width=out_size[1],
            kernel=self.kernel,
            weight=self.weight,
            x=x,
            **settings,
        )
        return not call.refused


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int, groups: int
) -> Tensor:
    """See :func:`mmlocal.ops.convolution.grouped_conv2d`."""
    if x.numel() == 0:
        return eager.forward(x, weight, bias, padding, dilation, groups)
    call = _Call(x, weight, padding, dilation)
    shape = output_shape(x, weight, padding, dilation)
    out = Output(x, shape, call.dtype, call.lanes)
    right = call.run(
        "convolution_forward",
        call.pixels(x),
        shape[2:],
        bias=None if bias is None else bias.to(call.dtype).contiguous(),
        out=out.pixels,
        tables=call.weight.new_empty(call.tables),
    )
    if not right:
        return eager.forward(x, weight, bias, padding, dilation, groups)
    return out.finish()


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    dilation: int,
    groups: int,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``x, weight, bias``, ``None`` where not needed."""
    settings = (padding, dilation, groups)
    if x.numel() == 0:
        return eager.backward(grad, x, weight, bias, *settings, needs_grad)
    need_x, need_weight, need_bias = needs_grad
    call = _Call(x, weight, padding, dilation)
    pixels = call.pixels(grad)
    grad_x = grad_weight = grad_bias = None
    right = True
    if need_x:
        found = Output(x, x.shape, call.dtype, call.lanes)
        right = call.run(
            "convolution_forward",
            pixels,
            x.shape[2:],
            padding=(call.kernel - 1) * call.dilation - padding,
            transposed=True,
            out=found.pixels,
            tables=call.weight.new_empty(call.tables),
        )
        grad_x = found.finish()
    if need_weight:
        grad_weight = torch.empty_like(call.weight)
        grad_bias = call.weight.new_empty(len(weight)) if need_bias else None
        # All vectors together have several sums for each part of the work.
        parts = max(1, 8 * PARTS // call.tables[0])
        right &= call.run(
            "convolution_grad_weight",
            call.pixels(x),
            grad.shape[2:],
            grad=pixels,
            parts=parts,
            grad_weight=grad_weight,
            grad_bias=grad_bias,
            sums=call.weight.new_empty(parts, *call.tables),
        )
        grad_weight = grad_weight.to(weight.dtype)
    elif need_bias:
        grad_bias = grad.sum(dim=(0, 2, 3), dtype=call.dtype)
    if not right:
        return eager.backward(grad, x, weight, bias, *settings, needs_grad)
    if grad_bias is not None and bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    return grad_x, grad_weight, grad_bias

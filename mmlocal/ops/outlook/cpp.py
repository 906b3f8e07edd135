"""The outlook op in C++ for CPUs, with the channels of a pixel in vectors.

The kernels in ``mmlocal/ops/csrc`` read channels-last maps. They read a map in place if it is
channels-last and its channels fill whole vectors (16 floats with AVX-512). Other maps are copied.
Half precision is converted to float32 and back.
"""

from __future__ import annotations

from ctypes import c_bool, c_int64
from typing import Any, ClassVar

from torch import Tensor

from mmlocal.ops.cpp_common import Output, computation_dtype, to_pixels
from mmlocal.ops.extension import Arguments, Map, fields, loaded, round_up
from mmlocal.ops.layout import new_map


class Outlook(Arguments):
    """``Outlook`` of ``kernels.h``."""

    _fields_: ClassVar = [
        *fields(c_int64, "batch height width rows cols heads head_dims kernel stride padding"),
        *fields(c_bool, "softmax"),
        *fields(Map, "value attn grad out grad_value grad_attn"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        channels = round_up(self.heads * self.head_dims, lanes)
        value = (self.batch, self.height, self.width, channels)
        attn = (self.batch, self.rows, self.cols, self.heads * self.kernel**4)
        return dict.fromkeys(("value", "grad", "out", "grad_value"), value) | dict.fromkeys(
            ("attn", "grad_attn"), attn
        )


class _Call:
    """The inputs of one call in the form of ``kernels.h``."""

    def __init__(
        self,
        value: Tensor,
        attn: Tensor,
        num_heads: int,
        kernel_size: int,
        stride: int,
        padding: int,
        softmax: bool,
    ) -> None:
        self.extension = loaded()
        self.dtype = computation_dtype(value)
        self.lanes = self.extension.lanes(self.dtype)
        batch, channels, height, width = value.shape
        self.inputs: dict[str, Any] = dict(
            batch=batch,
            height=height,
            width=width,
            rows=attn.shape[2],
            cols=attn.shape[3],
            heads=num_heads,
            head_dims=channels // num_heads,
            kernel=kernel_size,
            stride=stride,
            padding=padding,
            softmax=softmax,
            value=to_pixels(value, self.dtype, self.lanes),
            attn=to_pixels(attn, self.dtype),
        )

    def run(self, function: str, **more: Tensor | None) -> None:
        self.extension.run(function, Outlook, self.dtype, **self.inputs, **more)


def forward(
    value: Tensor,
    attn: Tensor,
    num_heads: int,
    kernel_size: int,
    stride: int,
    padding: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.outlook.outlook_attention`."""
    if value.numel() == 0:
        return new_map(value, value.shape)
    call = _Call(value, attn, num_heads, kernel_size, stride, padding, softmax)
    out = Output(value, value.shape, call.dtype, call.lanes)
    call.run("outlook_forward", out=out.pixels)
    return out.finish()


def backward(
    grad: Tensor,
    value: Tensor,
    attn: Tensor,
    num_heads: int,
    kernel_size: int,
    stride: int,
    padding: int,
    softmax: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``value, attn``, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    need_value, need_attn = needs_grad
    if value.numel() == 0:
        return (
            new_map(value, value.shape) if need_value else None,
            new_map(attn, attn.shape) if need_attn else None,
        )
    call = _Call(value, attn, num_heads, kernel_size, stride, padding, softmax)
    grad_value = Output(value, value.shape, call.dtype, call.lanes) if need_value else None
    grad_attn = Output(attn, attn.shape, call.dtype) if need_attn else None
    call.run(
        "outlook_backward",
        grad=to_pixels(grad, call.dtype, call.lanes),
        grad_value=None if grad_value is None else grad_value.pixels,
        grad_attn=None if grad_attn is None else grad_attn.pixels,
    )
    return (
        None if grad_value is None else grad_value.finish(),
        None if grad_attn is None else grad_attn.finish(),
    )

"""A convolution of narrow groups, which the libraries of PyTorch compute slowly on CPUs.

To add a backend, write a module with ``forward`` and ``backward``, which have the signatures in
``eager``, and name the module in ``BACKENDS``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmlocal.ops.backends import make_backends
from mmlocal.ops.checks import check_counts, check_maps, check_positive, check_tables, check_tensors
from mmlocal.ops.convolution import plain, reference
from mmlocal.ops.convolution.reference import GROUP_WIDTH, output_shape
from mmlocal.ops.layout import new_map
from mmlocal.ops.operator import Operator, as_for_convolution
from mmlocal.ops.registry import Op, register_op

__all__ = ["BACKENDS", "GROUP_WIDTH", "grouped_conv2d"]

# In half precision, CPUs round the result alone. All else is in float32.
_HALF = {torch.bfloat16: 8e-3, torch.float16: 1e-3}

BACKENDS = make_backends(
    __name__,
    {torch.float64: 5e-15, torch.float32: 1.5e-6} | _HALF,
    cpp=dict(description="C++ extension, vectors of groups"),
    # PyTorch adds up the gradients of weight and bias over many pixels, one by one.
    eager=dict(
        description="PyTorch's own convolution",
        atol={torch.float64: 2e-14, torch.float32: 1e-5} | _HALF,
    ),
)


def _empty_output(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int, *args: Any
) -> Tensor:
    return new_map(x, output_shape(x, weight, padding, dilation))


_operator = Operator(
    "grouped_conv2d",
    reference.forward,
    BACKENDS,
    fake=_empty_output,
    tables=("weight",),
    plain=plain.forward,
)


def grouped_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: int = 0,
    dilation: int = 1,
    groups: int,
    backend: str | None = None,
) -> Tensor:
    """Convolve each group of 4 channels: :func:`torch.nn.functional.conv2d`, faster on CPUs.

    For the output channel ``c``, the channels ``i`` of its group, and the taps ``t``::

        out[c, p] = bias[c] + sum over i and t of
                    weight[c, i, t] * x[4 * (c // 4) + i, p + dilation * t - padding]

    Args:
        x: ``(B, C, H, W)``, any float dtype and memory format. Zero outside the map.
        weight: ``(C, 4, kernel_size, kernel_size)``, dtype of ``x``.
        bias: ``(C,)``, dtype of ``x``.
        padding: number of pixels by which windows reach beyond the map, on each side.
        dilation: distance between taps, in pixels.
        groups: number of groups, ``C / 4``.
        backend: name of a backend in ``BACKENDS``. ``None`` takes the name in the environment
            variable ``MMLOCAL_BACKEND`` or, if that is not set, the fastest one that can run.

    Returns:
        ``(B, C, rows, columns)``, dtype of ``x``, with
        ``rows = H + 2 * padding - dilation * (kernel_size - 1)``, and so for ``columns``;
        channels-last in memory if ``x`` is.

    Raises:
        TypeError: a tensor is not floating point, the tensors have two dtypes, or a count is not an
            int.
        ValueError: groups of other than 4 channels, for which there is
            :func:`torch.nn.functional.conv2d`, a weight that is not square, shapes that do not fit,
            a negative ``padding``, a ``dilation`` below 1, either of them above 2**31 - 1, a map
            without pixels or channels or smaller than one window, tensors on several devices, or
            unknown ``backend``.
        RuntimeError: the named backend cannot run here, or it lacks the derivatives in use. All
            backends have first derivatives, ``torch.func.grad`` and ``vmap``. ``reference`` also
            has higher and forward-mode derivatives.

    Note:
        Under autocast, the tensors are cast as for every convolution. On CPUs, float16 and bfloat16
        inputs are accumulated in float32.

        On CPUs, infinity and NaN reach the outputs and gradients of the windows that hold them, and
        no others. A tap outside the map adds nothing, even if its weight is infinity or NaN. On
        other devices, that depends on the library.

        ``torch.compile`` and ``torch.export`` see one node, which is ``Conv`` in ONNX.

    Source:
        ImageNet Classification with Deep Convolutional Neural Networks, Krizhevsky et al. 2012.
        ELSA computes its logits by such a convolution.
    """
    check_tensors("grouped_conv2d", {"bias": bias}, x=x, weight=weight)
    check_counts(padding=padding, dilation=dilation, groups=groups)
    check_positive(dilation=dilation, groups=groups)
    x, weight, bias = as_for_convolution(x, weight, bias)
    _check(x, weight, bias, padding, dilation, groups)
    return _operator(x, weight, bias, padding, dilation, groups, backend=backend)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int, groups: int
) -> None:
    check_maps(x=x)
    channels, height, width = x.shape[1:]
    if channels != GROUP_WIDTH * groups:
        raise ValueError(
            f"x must have groups of {GROUP_WIDTH} channels, got {channels} channels in {groups} "
            "groups; torch.nn.functional.conv2d takes other groups"
        )
    if weight.dim() != 4 or weight.shape[3] == 0:
        raise ValueError(
            "weight must have the 4 dimensions (C, 4, kernel_size, kernel_size), "
            f"got {tuple(weight.shape)}"
        )
    kernel_size = weight.shape[3]
    shape = (channels, GROUP_WIDTH, kernel_size, kernel_size)
    check_tables(shape, "(C, 4, kernel_size, kernel_size)", weight=weight)
    check_tables((channels,), "(C,)", bias=bias)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x ({x.dtype}), got {tensor.dtype}")
    if padding < 0:
        raise ValueError(f"padding must be at least 0, got {padding}")
    for name, count in (("padding", padding), ("dilation", dilation)):
        if count >= 2**31:
            raise ValueError(f"{name} must be below 2**31, got {count}")
    reach = dilation * (kernel_size - 1)
    if min(height, width) + 2 * padding <= reach:
        raise ValueError(
            f"x must be at least one window of {reach + 1} pixels with padding={padding}, "
            f"got a map of {height}x{width}"
        )


register_op(
    Op(
        "convolution",
        grouped_conv2d,
        BACKENDS,
        "mmlocal.ops.convolution.analysis",
        tables=("weight",),
    )
)

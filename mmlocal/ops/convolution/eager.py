"""The grouped convolution in plain PyTorch: its own convolution, wherever all numbers are finite.

Some libraries multiply the weight with the zeros around the map, and some do not. So a number that
is not finite may spoil different pixels. On a CPU, such a convolution is computed tap by tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.convolution.reference import output_shape
from mmlocal.ops.eager_common import taps_inside
from mmlocal.ops.layout import to_layout


def _is_finite(x: Tensor) -> bool:
    # On another device, the question would make the program wait.
    return x.device.type != "cpu" or bool(x.isfinite().all())


def _dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in. CPUs add up half precision in half precision."""
    return torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype


def _taps(
    x: Tensor, weight: Tensor, size: Sequence[int], padding: int, dilation: int
) -> list[tuple]:
    return taps_inside(weight.shape[2], 1, padding, dilation, x.shape[2:], size)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int, groups: int
) -> Tensor:
    """See :func:`mmlocal.ops.convolution.grouped_conv2d`."""
    dtype = _dtype(x)
    v, w = x.to(dtype), weight.to(dtype)
    b = None if bias is None else bias.to(dtype)
    if _is_finite(w):
        out = F.conv2d(v, w, b, padding=padding, dilation=dilation, groups=groups)
        return to_layout(out, x)
    shape = output_shape(x, weight, padding, dilation)
    out = v.new_zeros(shape) if b is None else b[:, None, None].expand(shape).clone()
    for tap, own, other in _taps(x, weight, shape[2:], padding, dilation):
        out[own] += F.conv2d(v[other], w.flatten(2)[:, :, tap, None, None], groups=groups)
    return to_layout(out, x)


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
    dtype = _dtype(x)
    g, v, w = grad.to(dtype), x.to(dtype), weight.to(dtype)
    options: dict[str, Any] = dict(
        bias_sizes=[len(weight)],
        stride=[1, 1],
        padding=[padding] * 2,
        dilation=[dilation] * 2,
        transposed=False,
        output_padding=[0, 0],
        groups=groups,
    )
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        g, v, w, output_mask=needs_grad, **options
    )
    need_x, need_weight, _ = needs_grad
    exact_x = need_x and not _is_finite(w)
    exact_weight = need_weight and not _is_finite(grad_weight)
    if exact_x or exact_weight:
        inside = dict(options, padding=[0, 0], dilation=[1, 1])
        back = torch.zeros_like(v)
        slopes = torch.zeros_like(w).flatten(2)
        for tap, own, other in _taps(x, weight, grad.shape[2:], padding, dilation):
            one = w.flatten(2)[:, :, tap, None, None]
            tap_x, tap_weight, _ = torch.ops.aten.convolution_backward(
                g[own], v[other], one, output_mask=[exact_x, exact_weight, False], **inside
            )
            if exact_x:
                back[other] += tap_x
            if exact_weight:
                slopes[:, :, tap] = tap_weight[:, :, 0, 0]
        grad_x = back if exact_x else grad_x
        grad_weight = slopes.view(w.shape) if exact_weight else grad_weight
    return (
        to_layout(grad_x, x) if need_x else None,
        grad_weight.to(weight.dtype).contiguous() if need_weight else None,
        None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
    )

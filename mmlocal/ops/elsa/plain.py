"""The ELSA op in operators that ONNX has, tap by tap: no window is ever stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.plain_common import computation_dtype, entries, pad_sides, sum_of_products, taps_of


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
    channels = value.shape[1]
    taps, reach = kernel_size**2, kernel_size // 2 * dilation
    heads = attn.shape[1] // taps
    dtype = computation_dtype(value)
    v = value.to(dtype)
    attn = attn.to(dtype).unflatten(1, (heads, taps))
    if softmax:
        attn = attn.softmax(dim=2)

    def of_taps(table: Tensor | None) -> Any:
        if table is None:
            return [None] * taps
        return table.to(dtype).reshape(heads, channels // heads, taps, 1, 1).unbind(2)

    # The additive ghost head is a depth-wise convolution. ONNX needs its groups as a number.
    total = None
    if ghost_add is not None and isinstance(channels, int):
        kernels = ghost_add.to(dtype)[:, None]
        total = F.conv2d(v, kernels, padding=reach, dilation=dilation, groups=channels)
        total, ghost_add = total.unflatten(1, (heads, channels // heads)), None

    def weights() -> Iterator[Tensor]:
        tables = zip(of_taps(ghost_mul), of_taps(ghost_add), strict=True)
        for weight, (mul, add) in zip(entries(attn, 2), tables, strict=True):
            if mul is not None:
                weight = weight * mul
            yield weight if add is None else weight + add

    padded = pad_sides(v, reach).unflatten(1, (heads, channels // heads))
    neighbours = taps_of(padded, kernel_size, dilation=dilation)
    pairs = zip(neighbours, weights(), strict=True)
    return sum_of_products(pairs, total).flatten(1, 2).to(value.dtype)


def forward_projected(
    value: Tensor,
    features: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    """See :func:`mmlocal.ops.elsa.elsa_attention_projected`."""
    attn = F.conv2d(features, proj_weight[:, :, None, None], proj_bias)
    return forward(value, attn, ghost_mul, ghost_add, kernel_size, dilation, True)

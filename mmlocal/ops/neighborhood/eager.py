"""The op in plain PyTorch, tap by tap: no window is ever stored.

In addition to inputs and outputs, it holds one temporary map, whatever the kernel size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlocal.ops.eager_common import chunks, taps_inside
from mmlocal.ops.elsa import eager as elsa
from mmlocal.ops.layout import to_layout
from mmlocal.ops.neighborhood.gradients import gradients


def forward(
    query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int, masked: bool
) -> Tensor:
    """See :func:`mmlocal.ops.neighborhood.neighborhood_scores`."""
    batch, channels, *size = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    # The loop over taps reads whole rows, so W has to be the innermost dimension in memory.
    shape = (batch, num_heads, channels // num_heads, *size)
    q, k = (x.to(dtype).contiguous().view(shape) for x in (query, key))
    outside = -torch.inf if masked else 0.0
    scores = q.new_full((batch, num_heads, kernel_size**2, *size), outside)
    padding = kernel_size // 2 * dilation
    for chunk in chunks(q):
        product = torch.empty_like(q[chunk])
        for tap, own, other in taps_inside(kernel_size, 1, padding, dilation, size, size):
            own_product = torch.mul(q[chunk][own], k[chunk][other], out=product[own])
            torch.sum(own_product, dim=2, out=scores[chunk, :, tap][own])
    return to_layout(scores.flatten(1, 2), query)


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    masked: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``query`` and ``key``, ``None`` where not needed."""
    return gradients(elsa, grad, query, key, kernel_size, dilation, needs_grad)

"""The op as Triton kernels, which it shares with the ELSA op; see ``elsa.triton_impl``.

The scores are the gradient of ELSA's weights, with the queries as gradient of its output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlocal.ops.elsa import triton_impl as elsa
from mmlocal.ops.elsa.triton_backward import grad_attn_kernel
from mmlocal.ops.layout import new_map
from mmlocal.ops.neighborhood.gradients import gradients
from mmlocal.ops.triton_common import programs


def forward(
    query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int, masked: bool
) -> Tensor:
    """See :func:`mmlocal.ops.neighborhood.neighborhood_scores`."""
    batch, _, height, width = query.shape
    scores = new_map(query, (batch, num_heads * kernel_size**2, height, width))
    q, k, o = (x.flatten(2) for x in (query, key, scores))
    with torch.cuda.device_of(query):
        grad_attn_kernel[programs(height * width, num_heads * batch)](
            q, q.stride(), k, k.stride(), None, None, None, None, None, o, o.stride(),
            num_heads, height, width, dilation,
            **elsa.kernel_constants(key, scores, kernel_size, softmax=False), MASKED=masked,
        )  # fmt: skip
    return scores


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

"""The op in C++ for CPUs, by the kernels of the ELSA op; see ``elsa.cpp`` for layouts and copies.

The scores are the gradient of ELSA's weights, with the queries as gradient of its output.
"""

from __future__ import annotations

from torch import Tensor

from mmlocal.ops.cpp_common import Output, computation_dtype, to_pixels
from mmlocal.ops.elsa import cpp as elsa
from mmlocal.ops.extension import loaded
from mmlocal.ops.layout import new_map
from mmlocal.ops.neighborhood.gradients import gradients


def forward(
    query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int, masked: bool
) -> Tensor:
    """See :func:`mmlocal.ops.neighborhood.neighborhood_scores`."""
    batch, channels, height, width = query.shape
    shape = (batch, num_heads * kernel_size**2, height, width)
    if query.numel() == 0:
        return new_map(query, shape)
    extension, dtype = loaded(), computation_dtype(query)
    lanes = extension.lanes(dtype)
    out = Output(query, shape, dtype)
    extension.run(
        "elsa_backward",
        elsa.Elsa,
        dtype,
        batch=batch,
        height=height,
        width=width,
        heads=num_heads,
        head_dims=channels // num_heads,
        kernel=kernel_size,
        dilation=dilation,
        softmax=False,
        masked=masked,
        grad=to_pixels(query, dtype, lanes),
        value=to_pixels(key, dtype, lanes),
        grad_attn=out.pixels,
    )
    return out.finish()


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
    if query.numel() == 0:
        empty = [new_map(x, x.shape) for x in (query, key)]
        return empty[0] if needs_grad[0] else None, empty[1] if needs_grad[1] else None
    # Both gradients read it. Here it is brought into their layout once.
    grad = to_pixels(grad, computation_dtype(query)).movedim(-1, -3)
    return gradients(elsa, grad, query, key, kernel_size, dilation, needs_grad)

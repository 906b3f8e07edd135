"""Scores of each pixel's query against the keys around it: the first half of local attention.

To add a backend, write a module with ``forward`` and ``backward``, which have the signatures in
``eager``, and name the module in ``BACKENDS``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmlocal.ops.backends import make_backends
from mmlocal.ops.checks import check_counts, check_maps, check_positive, check_tensors
from mmlocal.ops.layout import new_map
from mmlocal.ops.neighborhood import plain, reference
from mmlocal.ops.operator import Operator
from mmlocal.ops.registry import Op, register_op

BACKENDS = make_backends(
    __name__,
    # In half precision, only the result is rounded. All else is in float32.
    {torch.float64: 5e-15, torch.float32: 1.5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    triton=dict(description="Triton kernels, pixels of a head together"),
    cpp=dict(description="C++ extension, vectors of channels"),
)


def _empty_scores(
    query: Tensor, key: Tensor, num_heads: int, kernel_size: int, *args: Any
) -> Tensor:
    batch, _, height, width = query.shape
    return new_map(query, (batch, num_heads * kernel_size**2, height, width))


_operator = Operator(
    "neighborhood_scores",
    reference.forward,
    BACKENDS,
    fake=_empty_scores,
    step="dilation",
    plain=plain.forward,
)


def neighborhood_scores(
    query: Tensor,
    key: Tensor,
    *,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    border: str = "zero",
    backend: str | None = None,
) -> Tensor:
    """Compare each pixel's query with the keys in the window around it.

    For the taps ``t`` of the window around pixel ``p`` and the channels ``c`` of head ``n``::

        scores[n, t, p] = sum_c query[c, p] * key[c, p + offset(t)]

    The result is the ``attn`` of :func:`mmlocal.ops.elsa_attention`, usually after a factor
    ``(C / num_heads) ** -0.5`` in ``query``. Both together are stand-alone self-attention, and hold
    ``num_heads * kernel_size**2`` numbers per pixel in memory, but no windows.

    Args:
        query: ``(B, C, H, W)``, any float dtype and memory format.
        key: ``(B, C, H, W)``, dtype of ``query``, any memory format.
        num_heads: number of heads. It must divide ``C``. Channels
            ``[n * C / num_heads, (n + 1) * C / num_heads)`` of both maps belong to head ``n``.
        kernel_size: odd width of the window, in taps. Taps are in row-major order.
        dilation: distance between taps, in pixels.
        border: score of taps outside the map. ``"zero"``: 0, as for keys of 0. ``"mask"``: -inf, so
            that they take no part in a softmax. Both have no gradient.
        backend: name of a backend in ``BACKENDS``. ``None`` takes the name in the environment
            variable ``MMLOCAL_BACKEND`` or, if that is not set, the fastest one that can run.

    Returns:
        ``(B, num_heads * kernel_size**2, H, W)``, head-major, dtype of ``query``; channels-last in
        memory if ``query`` is.

    Raises:
        TypeError: a tensor is not floating point, the tensors have two dtypes, or ``num_heads``,
            ``kernel_size`` or ``dilation`` is not an int.
        ValueError: even ``kernel_size``, ``num_heads`` or ``dilation`` below 1, ``num_heads`` that
            does not divide ``C``, shapes that differ, a map without pixels or channels, tensors on
            several devices, or unknown ``border`` or ``backend``.
        RuntimeError: the named backend cannot run here, or it lacks the derivatives in use. All
            backends have first derivatives, ``torch.func.grad`` and ``vmap``. ``reference`` also
            has higher and forward-mode derivatives.

    Note:
        float16 and bfloat16 inputs are accumulated in float32. In every backend, infinity and NaN
        reach the scores and gradients of the windows that hold them, and no others.

        ``torch.compile`` and ``torch.export`` see one node.

    Source:
        Stand-Alone Self-Attention in Vision Models, Ramachandran et al. 2019,
        https://arxiv.org/abs/1906.05909, section 3, eq. 2, without position embedding.
    """
    check_tensors("neighborhood_scores", {}, query=query, key=key)
    check_counts(num_heads=num_heads, kernel_size=kernel_size, dilation=dilation)
    check_positive(num_heads=num_heads, dilation=dilation)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be a positive odd number, got {kernel_size}")
    if border not in ("zero", "mask"):
        raise ValueError(f"border must be 'zero' or 'mask', got {border!r}")
    check_maps(query=query, key=key)
    if key.shape != query.shape:
        raise ValueError(
            f"key must have the shape of query {tuple(query.shape)}, got {tuple(key.shape)}"
        )
    if key.dtype != query.dtype:
        raise TypeError(f"key must have the dtype of query ({query.dtype}), got {key.dtype}")
    if query.shape[1] % num_heads:
        raise ValueError(
            f"num_heads must divide the {query.shape[1]} channels of query, got {num_heads}"
        )
    masked = border == "mask"
    return _operator(query, key, num_heads, kernel_size, dilation, masked, backend=backend)


register_op(Op("neighborhood", neighborhood_scores, BACKENDS, "mmlocal.ops.neighborhood.analysis"))

"""QnA's aggregation: learned queries attend to the tokens of overlapping windows.

To add a backend, write a module with ``forward`` and ``backward``, which have the signatures in
``eager``, and name the module in ``BACKENDS``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlocal.ops.backends import make_backends
from mmlocal.ops.checks import (
    check_counts,
    check_flags,
    check_maps,
    check_positive,
    check_tables,
    check_tensors,
    count_heads,
)
from mmlocal.ops.layout import new_map
from mmlocal.ops.operator import Operator
from mmlocal.ops.qna import plain, reference
from mmlocal.ops.qna.reference import attention_maps, output_size
from mmlocal.ops.registry import Op, register_op

__all__ = ["BACKENDS", "attention_maps", "output_size", "qna_attention"]

# In half precision, only the result is rounded. All else is in float32.
_ATOL = {torch.float64: 5e-15, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# The gradient of the scores is the difference of two sums. For the only token of a window it should
# be 0, but the rounding of both sums remains.
_CPP_ATOL = _ATOL | {torch.float64: 1e-14, torch.float32: 4e-6}

BACKENDS = make_backends(
    __name__,
    _ATOL,
    triton=dict(description="Triton kernels, windows of a head together"),
    cpp=dict(description="C++ extension, vectors of channels", atol=_CPP_ATOL),
)


def qna_attention(
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None = None,
    tap_weight: Tensor | None = None,
    *,
    num_queries: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    sum_queries: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Let the same learned queries attend to each window, and add their outputs.

    For channel ``c`` of head ``n``, with ``scores[l, n, x] = query[l, n] . key[n, x]`` computed
    beforehand, once per token::

        out[c, p] = sum_l sum_t tap_weight[l, n, t] * a[l, n, t, p] * value[c, stride * p + t - pad]
        a[l, n, :, p] = softmax_t(scores[l, n, stride * p + t - pad] + rel_pos[l, n, t])

    Taps ``t`` are in row-major order, as in a cross-correlation. The softmax runs over the tokens
    in the map only.

    Args:
        value: ``(B, C, H, W)``, any float dtype and memory format.
        scores: ``(B, num_queries * heads, H, W)``, query-major. Channels
            ``[n * C / heads, (n + 1) * C / heads)`` of ``value`` use head ``n``. A score of -inf
            takes its token out of all windows. A window without tokens gives 0.
        rel_pos: ``(num_queries * heads, kernel_size, kernel_size)``. It is added to the scores.
            ``None`` stands for 0.
        tap_weight: ``(num_queries * heads, kernel_size, kernel_size)``. It multiplies the attention
            after the softmax. ``None`` stands for 1.
        num_queries: number of learned queries per window.
        kernel_size: width of the window, in tokens.
        stride: distance between windows, in tokens.
        padding: number of tokens by which windows reach beyond the map; less than ``kernel_size``.
        sum_queries: whether to add the outputs of the queries. ``False`` returns each of them.
        backend: name of a backend in ``BACKENDS``. ``None`` takes the name in the environment
            variable ``MMLOCAL_BACKEND`` or, if that is not set, the fastest one that can run.

    Returns:
        ``(B, C, H_out, W_out)`` or, without ``sum_queries``,
        ``(B, num_queries, C, H_out, W_out)``, dtype of ``value``, with
        ``H_out = (H + 2 * padding - kernel_size) // stride + 1``; channels-last in memory if
        ``value`` is.

    Raises:
        TypeError: a tensor is not floating point, a count is not an int, or ``sum_queries`` is not
            a bool.
        ValueError: a count below 1, ``padding`` out of range, a map without pixels or channels or
            smaller than one window, shapes that do not fit each other, tensors on several devices,
            or unknown ``backend``.
        RuntimeError: the named backend cannot run here, or it lacks the derivatives in use. All
            backends have first derivatives, ``torch.func.grad`` and ``vmap``. ``reference`` also
            has higher and forward-mode derivatives.

    Note:
        The result is exact for any finite score in any dtype, because exponents are relative to the
        maximum of each window. (The official code takes ``exp(score)``. This overflows in float16
        for scores from 11 on, and its gradient is wrong in float32 for scores from about 42 on.)
        float16 and bfloat16 inputs are accumulated in float32.

        In every backend, NaN and infinity (except a score of -inf) reach the outputs and gradients
        of the windows that hold them, and no others. A table entry does not count in windows where
        its tap lies outside the map. An infinite result may be NaN where a weight is too small for
        the dtype of the computation (infinity times 0).

        ``torch.compile`` and ``torch.export`` see one node. ``torch.fx.symbolic_trace`` cannot
        follow the checks: use ``torch.export.export``. ``torch.jit.script`` cannot read the
        function: use ``torch.export.export``, or ``torch.jit.trace``.

    Source:
        Learned Queries for Efficient Local Attention, Arar et al. 2022,
        https://arxiv.org/abs/2112.11435, section 3, eq. 6 to 8; with ``sum_queries=False``,
        appendix F.
    """
    check_flags(sum_queries=sum_queries)
    _check(value, scores, rel_pos, tap_weight, num_queries, kernel_size, stride, padding)
    return _operator(
        *(value, scores, rel_pos, tap_weight),
        *(num_queries, kernel_size, stride, padding, sum_queries),
        backend=backend,
    )


def _check(
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None,
    tap_weight: Tensor | None,
    num_queries: int,
    kernel_size: int,
    stride: int,
    padding: int,
) -> None:
    tables = dict(rel_pos=rel_pos, tap_weight=tap_weight)
    check_tensors("qna_attention", tables, value=value, scores=scores)
    counts = dict(num_queries=num_queries, kernel_size=kernel_size, stride=stride)
    check_counts(**counts, padding=padding)
    check_positive(**counts)
    if not 0 <= padding < kernel_size:
        raise ValueError(f"padding must be 0 to kernel_size - 1 = {kernel_size - 1}, got {padding}")
    check_maps(value=value, scores=scores)
    count_heads(value, "scores", scores.shape[1], num_queries, "num_queries * heads")
    height, width = value.shape[2:]
    # Each side is compared by itself. With the minimum of both, torch 2.6 would compile again when
    # the other side becomes the smaller one.
    if height + 2 * padding < kernel_size or width + 2 * padding < kernel_size:
        raise ValueError(
            f"value must be at least one window of kernel_size={kernel_size} with "
            f"padding={padding}, got a map of {height}x{width}"
        )
    shape = (scores.shape[1], kernel_size, kernel_size)
    check_tables(shape, "(num_queries * heads, kernel_size, kernel_size)", **tables)


def _fake(
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None,
    tap_weight: Tensor | None,
    num_queries: int,
    kernel_size: int,
    stride: int,
    padding: int,
    sum_queries: bool,
    backend: str,
) -> Tensor:
    batch, channels, *size = value.shape
    size = [output_size(n, kernel_size, stride, padding) for n in size]
    queries = () if sum_queries else (num_queries,)
    return new_map(value, (batch, *queries, channels, *size))


_operator = Operator(
    "qna_attention", reference.forward, BACKENDS, fake=_fake, step="stride", plain=plain.forward
)

register_op(Op("qna", qna_attention, BACKENDS, "mmlocal.ops.qna.analysis"))

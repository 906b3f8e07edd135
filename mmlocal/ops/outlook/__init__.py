"""VOLO's outlook attention: each window mixes its own pixels, and overlapping windows add up.

To add a backend, write a module with ``forward`` and ``backward``, which have the signatures in
``eager``, and name the module in ``BACKENDS``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlocal.ops.backends import make_backends
from mmlocal.ops.checks import check_counts, check_flags, check_maps, check_positive, check_tensors
from mmlocal.ops.operator import Operator
from mmlocal.ops.outlook import plain, reference
from mmlocal.ops.outlook.reference import output_size
from mmlocal.ops.registry import Op, register_op

__all__ = ["BACKENDS", "outlook_attention", "output_size"]

BACKENDS = make_backends(
    __name__,
    # In half precision, only the result is rounded. All else is in float32.
    {torch.float64: 5e-15, torch.float32: 1.5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    triton=dict(description="Triton kernels, pixels of a head together"),
    cpp=dict(description="C++ extension, vectors of channels"),
)
_operator = Operator(
    "outlook_attention", reference.forward, BACKENDS, step="stride", plain=plain.forward
)


def outlook_attention(
    value: Tensor,
    attn: Tensor,
    *,
    num_heads: int,
    kernel_size: int = 3,
    stride: int = 2,
    padding: int = 1,
    softmax: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Mix the pixels of each window by a matrix that is given, and add up the windows.

    Window ``p`` holds the pixels ``pixel(p, t) = stride * p + t - padding``. For channel ``c`` of
    head ``n``::

        out[c, x] = sum of a[n, t, s, p] * value[c, pixel(p, s)]
                    over all windows p, targets t and sources s with pixel(p, t) = x
        a[n, t, :, p] = softmax_s(attn[n, t, :, p])

    This is an unfold, a product of matrices and a fold. No backend but ``reference`` writes the
    windows out. Taps ``t`` and ``s`` are in row-major order, as in a cross-correlation.

    Args:
        value: ``(B, C, H, W)``, any float dtype and memory format. Zero outside the map.
        attn: ``(B, num_heads * kernel_size**4, rows, columns)``, any float dtype and memory format,
            with ``rows = (H + 2 * padding - kernel_size) // stride + 1`` and
            ``columns = (W + 2 * padding - kernel_size) // stride + 1``. A window has one channel
            for each head, target and source. The source is innermost. Logits if ``softmax`` is
            true, weights if it is false. The op does not scale the logits.
        num_heads: number of heads. Channels ``[n * C / num_heads, (n + 1) * C / num_heads)`` of
            ``value`` use head ``n``.
        kernel_size: width of the window, in pixels.
        stride: distance between windows, in pixels.
        padding: number of pixels by which windows reach beyond the map; less than ``kernel_size``.
        softmax: whether ``attn`` passes a softmax over the sources. ``False`` uses it as it is, for
            weights after a dropout.
        backend: name of a backend in ``BACKENDS``. ``None`` takes the name in the environment
            variable ``MMLOCAL_BACKEND`` or, if that is not set, the fastest one that can run.

    Returns:
        ``(B, C, H, W)``, dtype of ``value``; channels-last in memory if ``value`` is. A pixel in no
        window is 0.

    Raises:
        TypeError: a tensor is not floating point, a count is not an int, or ``softmax`` is not a
            bool.
        ValueError: a count below 1, ``padding`` out of range, a map without pixels or channels or
            smaller than one window, shapes that do not fit each other, tensors on several devices,
            or unknown ``backend``.
        RuntimeError: the named backend cannot run here, or it lacks the derivatives in use. All
            backends have first derivatives, ``torch.func.grad`` and ``vmap``. ``reference`` also
            has higher and forward-mode derivatives.

    Note:
        float16 and bfloat16 inputs are accumulated in float32. Sources outside the map take part in
        the softmax and add nothing to the sum. Targets outside the map are dropped. The sum over
        windows is not divided by their number.

        In every backend, infinity and NaN reach the outputs and gradients of the windows that hold
        them, and no others. An infinite result may be NaN where a weight is too small for the dtype
        of the computation (infinity times 0).

        ``torch.compile`` and ``torch.export`` see one node. ``torch.fx.symbolic_trace`` cannot
        follow the checks: use ``torch.export.export``. ``torch.jit.script`` cannot read the
        function: use ``torch.export.export``, or ``torch.jit.trace``.

    Source:
        VOLO: Vision Outlooker for Visual Recognition, Yuan et al. 2021,
        https://arxiv.org/abs/2106.13112, section 3.1, eq. 3 to 5.
    """
    check_flags(softmax=softmax)
    _check(value, attn, num_heads, kernel_size, stride, padding)
    return _operator(value, attn, num_heads, kernel_size, stride, padding, softmax, backend=backend)


def _check(
    value: Tensor, attn: Tensor, num_heads: int, kernel_size: int, stride: int, padding: int
) -> None:
    check_tensors("outlook_attention", {}, value=value, attn=attn)
    counts = dict(num_heads=num_heads, kernel_size=kernel_size, stride=stride)
    check_counts(**counts, padding=padding)
    check_positive(**counts)
    if not 0 <= padding < kernel_size:
        raise ValueError(f"padding must be 0 to kernel_size - 1 = {kernel_size - 1}, got {padding}")
    check_maps(value=value)
    batch, channels, height, width = value.shape
    if channels % num_heads:
        raise ValueError(
            f"value must have a multiple of num_heads={num_heads} channels, got {channels}"
        )
    if height + 2 * padding < kernel_size or width + 2 * padding < kernel_size:
        raise ValueError(
            f"value must be at least one window of kernel_size={kernel_size} with "
            f"padding={padding}, got a map of {height}x{width}"
        )
    rows, columns = (output_size(n, kernel_size, stride, padding) for n in (height, width))
    expected = (batch, num_heads * kernel_size**4, rows, columns)
    if attn.shape != expected:
        raise ValueError(
            f"attn must have shape (B, num_heads * kernel_size**4, rows, columns) = {expected} "
            f"for a value of {tuple(value.shape)}, got {tuple(attn.shape)}"
        )


register_op(Op("outlook", outlook_attention, BACKENDS, "mmlocal.ops.outlook.analysis"))

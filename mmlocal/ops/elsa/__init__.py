"""ELSA's neighbourhood aggregation: softmax over the window, ghost head, weighted sum.

To add a backend, write a module with ``forward`` and ``backward``, which have the signatures in
``eager``, and name the module in ``BACKENDS``.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import replace

import torch
from torch import Tensor

from mmlocal.ops.backends import choose_backend, make_backends
from mmlocal.ops.checks import (
    check_counts,
    check_flags,
    check_maps,
    check_positive,
    check_tables,
    check_tensors,
    count_heads,
)
from mmlocal.ops.elsa import plain, reference
from mmlocal.ops.linear import pointwise_conv2d
from mmlocal.ops.operator import Operator, as_for_convolution
from mmlocal.ops.registry import Op, register_op

BACKENDS = make_backends(
    __name__,
    # In half precision, only the result is rounded. All else is in float32.
    {torch.float64: 5e-15, torch.float32: 1.5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    triton=dict(description="Triton kernels, pixels of a head together"),
    cpp=dict(description="C++ extension, vectors of channels"),
)
_operator = Operator(
    "elsa_attention", reference.forward, BACKENDS, step="dilation", plain=plain.forward
)

# These backends fold the convolution into the op. The others get their logits from PyTorch.
_FOLDING = (replace(BACKENDS[0], module=f"{__name__}.triton_projected"), BACKENDS[-1])
_projected_operator = Operator(
    "elsa_attention_projected",
    reference.forward_projected,
    _FOLDING,
    step="dilation",
    plain=plain.forward_projected,
)


def elsa_attention(
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None = None,
    ghost_add: Tensor | None = None,
    *,
    kernel_size: int,
    dilation: int = 1,
    lam: float = 1.0,
    gamma: float = 1.0,
    softmax: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Weight each pixel's neighbours by its own attention map, refined by the ghost head.

    For channel ``c`` of head ``n`` and the taps ``t`` of the window around pixel ``p``::

        out[c, p] = sum_t (ghost_mul[c, t]**lam * a[n, t, p] + gamma * ghost_add[c, t])
                          * value[c, p + offset(t)]
        a[n, :, p] = softmax_t(attn[n, :, p])

    Taps are in row-major order, as in a cross-correlation.

    Args:
        value: ``(B, C, H, W)``, any float dtype and memory format. Zero outside the map.
        attn: ``(B, heads * kernel_size**2, H, W)``, head-major. Attention of each pixel to its
            taps: logits if ``softmax`` is true, weights if it is false. Channels
            ``[n * C / heads, (n + 1) * C / heads)`` of ``value`` use head ``n``.
        ghost_mul: ``(C, kernel_size, kernel_size)``, multiplicative ghost head, or ``None`` for 1.
            Not read if ``lam`` is 0. Must be positive if ``lam`` is not an integer.
        ghost_add: ``(C, kernel_size, kernel_size)``, additive ghost head, or ``None`` for 0.
            Not read if ``gamma`` is 0.
        kernel_size: odd width of the window, in taps.
        dilation: distance between taps, in pixels.
        lam: exponent of the multiplicative ghost head.
        gamma: factor of the additive ghost head.
        softmax: whether ``attn`` passes a softmax. ``False`` uses it as it is, for weights after a
            dropout.
        backend: name of a backend in ``BACKENDS``. ``None`` takes the name in the environment
            variable ``MMLOCAL_BACKEND`` or, if that is not set, the fastest one that can run.

    Returns:
        ``(B, C, H, W)``, dtype of ``value``; channels-last in memory if ``value`` is.

    Raises:
        TypeError: a tensor is not floating point, ``kernel_size`` or ``dilation`` is not an int,
            ``lam`` or ``gamma`` is not a number, or ``softmax`` is not a bool.
        ValueError: even ``kernel_size``, ``dilation`` below 1, shapes that do not fit each other,
            a map without pixels or channels, tensors on several devices, ``lam`` or ``gamma`` that
            is not finite, or unknown ``backend``.
        RuntimeError: the named backend cannot run here, or it lacks the derivatives in use. All
            backends have first derivatives, ``torch.func.grad`` and ``vmap``. ``reference`` also
            has higher and forward-mode derivatives.

    Note:
        float16 and bfloat16 inputs are accumulated in float32. Taps outside the map take part in
        the softmax. They add nothing to the sum, even if a ghost head is infinite or NaN there.

        In every backend, infinity and NaN reach the outputs and gradients of the windows that hold
        them, and no others. An infinite result may be NaN where a weight is too small for the dtype
        of the computation (infinity times 0).

        ``torch.compile`` and ``torch.export`` see one node. ``torch.fx.symbolic_trace`` cannot
        follow the checks: use ``torch.export.export``. ``torch.jit.script`` cannot read the
        function: use ``torch.export.export``, or ``torch.jit.trace``.

    Source:
        ELSA: Enhanced Local Self-Attention for Vision Transformer, Zhou et al. 2021,
        https://arxiv.org/abs/2112.12786, section 5, eq. 7 and 8. All published models have
        ``lam=0`` and ``gamma=1``.
    """
    ghosts = dict(ghost_mul=ghost_mul, ghost_add=ghost_add)
    check_tensors("elsa_attention", ghosts, value=value, attn=attn)
    check_flags(softmax=softmax)
    _check_settings(kernel_size, dilation, lam, gamma)
    check_maps(value=value, attn=attn)
    _check_heads(value, "attn", attn.shape[1], kernel_size, **ghosts)
    tables = _ghost_head(value, ghost_mul, ghost_add, lam, gamma)
    return _operator(value, attn, *tables, kernel_size, dilation, softmax, backend=backend)


def elsa_attention_projected(
    value: Tensor,
    features: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None = None,
    ghost_mul: Tensor | None = None,
    ghost_add: Tensor | None = None,
    *,
    kernel_size: int,
    dilation: int = 1,
    lam: float = 1.0,
    gamma: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Compute the logits by a ``1 x 1`` convolution, then call :func:`elsa_attention` with::

        attn[p] = proj_weight @ features[p] + proj_bias

    The logits are by far the largest map. The backend ``triton`` folds the convolution into its
    kernels and never writes the logits. The other backends use PyTorch's convolution.

    Args:
        value: ``(B, C, H, W)``, any float dtype and memory format. Zero outside the map.
        features: ``(B, qk_dims, H, W)``, any float dtype and memory format.
        proj_weight: ``(heads * kernel_size**2, qk_dims)`` or, as in a convolution,
            ``(heads * kernel_size**2, qk_dims, 1, 1)``, dtype of ``features``.
        proj_bias: ``(heads * kernel_size**2,)``, dtype of ``features``; ``None`` for 0.
        ghost_mul: ``(C, kernel_size, kernel_size)``, multiplicative ghost head, or ``None`` for 1.
        ghost_add: ``(C, kernel_size, kernel_size)``, additive ghost head, or ``None`` for 0.
        kernel_size: odd width of the window, in taps.
        dilation: distance between taps, in pixels.
        lam: exponent of the multiplicative ghost head.
        gamma: factor of the additive ghost head.
        backend: name of a backend, or ``None``, as in :func:`elsa_attention`.

    Returns:
        ``(B, C, H, W)``, dtype of ``value``; channels-last in memory if ``value`` is.

    Raises:
        TypeError: ``features``, ``proj_weight`` and ``proj_bias`` have several dtypes, or for a
            reason of :func:`elsa_attention`.
        ValueError: the shapes of ``features``, ``proj_weight`` and ``proj_bias`` do not fit a
            ``1 x 1`` convolution, or for a reason of :func:`elsa_attention`.
        RuntimeError: for a reason of :func:`elsa_attention`.

    Note:
        Under autocast, the convolution is computed in the lower precision, like any convolution. A
        folded convolution does not round its logits to half precision. For the backward pass, it
        keeps ``features`` instead of the logits.
    """
    ghosts = dict(ghost_mul=ghost_mul, ghost_add=ghost_add)
    tensors = dict(value=value, features=features, proj_weight=proj_weight)
    check_tensors("elsa_attention_projected", {"proj_bias": proj_bias, **ghosts}, **tensors)
    _check_settings(kernel_size, dilation, lam, gamma)
    check_maps(value=value, features=features)
    _check_convolution(features, proj_weight, proj_bias)
    _check_heads(value, "proj_weight", proj_weight.shape[0], kernel_size, **ghosts)
    features, weight, bias = as_for_convolution(features, proj_weight.flatten(1), proj_bias)
    dtypes = [features.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype]
    if len(set(dtypes)) > 1:
        raise TypeError(
            "features, proj_weight and proj_bias must have one dtype, "
            f"got {', '.join(map(str, dtypes))}"
        )
    name = choose_backend("elsa_attention_projected", BACKENDS, value, backend).name
    if name in [folding.name for folding in _FOLDING]:
        tables = _ghost_head(value, ghost_mul, ghost_add, lam, gamma)
        args = (value, features, weight, bias, *tables, kernel_size, dilation)
        return _projected_operator(*args, backend=name)
    return elsa_attention(
        value,
        pointwise_conv2d(features, weight[:, :, None, None], bias),
        ghost_mul,
        ghost_add,
        kernel_size=kernel_size,
        dilation=dilation,
        lam=lam,
        gamma=gamma,
        backend=name,
    )


def _check_settings(kernel_size: int, dilation: int, lam: float, gamma: float) -> None:
    check_counts(kernel_size=kernel_size, dilation=dilation)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be a positive odd number, got {kernel_size}")
    check_positive(dilation=dilation)
    for name, factor in (("lam", lam), ("gamma", gamma)):
        if not isinstance(factor, (numbers.Real, torch.SymFloat)):
            raise TypeError(f"{name} must be a number, got {factor!r}")
        if not -math.inf < factor < math.inf:
            raise ValueError(f"{name} must be a finite number, got {factor}")


def _check_convolution(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    dims = features.shape[1]
    if dims == 0 or weight.shape[1:] not in ((dims,), (dims, 1, 1)):
        raise ValueError(
            f"proj_weight must have the shape (heads * kernel_size**2, {dims}) of a 1x1 "
            f"convolution of features {tuple(features.shape)}, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"proj_bias must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}"
        )


def _check_heads(
    value: Tensor,
    name: str,
    logits: int,
    kernel_size: int,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
) -> None:
    count_heads(value, name, logits, kernel_size**2, "heads * kernel_size**2")
    shape = (value.shape[1], kernel_size, kernel_size)
    check_tables(shape, "(C, kernel_size, kernel_size)", ghost_mul=ghost_mul, ghost_add=ghost_add)


def _ghost_head(
    value: Tensor, ghost_mul: Tensor | None, ghost_add: Tensor | None, lam: float, gamma: float
) -> tuple[Tensor | None, Tensor | None]:
    """Apply ``lam`` and ``gamma`` to the tables, in float32 at least: the tables are small."""
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return (
        None if lam == 0 or ghost_mul is None else ghost_mul.to(dtype) ** lam,
        None if gamma == 0 or ghost_add is None else gamma * ghost_add.to(dtype),
    )


register_op(
    Op(
        "elsa",
        elsa_attention,
        BACKENDS,
        "mmlocal.ops.elsa.analysis",
        variants=(elsa_attention_projected,),
    )
)

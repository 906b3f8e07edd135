"""ELSA's neighbourhood aggregation: softmax over the window, ghost head, weighted sum.

To add a backend, write a module with ``forward`` and ``backward`` of the signatures in ``eager``
and list it in ``BACKENDS``, fastest first.
"""

from __future__ import annotations

import math
import numbers

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops import extension
from mmlocal.ops.backends import TRITON, Backend, check_counts, check_tensors, choose_backend
from mmlocal.ops.elsa import projection, reference
from mmlocal.ops.layout import new_map
from mmlocal.ops.operator import define_operator
from mmlocal.ops.registry import Op, register_op

_INT32 = 2**31 - 1

# Half precision: the rounding of the result; nothing else is done in it.
_ATOL = {
    torch.float64: 5e-15,
    torch.float32: 1.5e-6,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}

BACKENDS = (
    Backend(
        name="triton",
        description="Triton kernels, pixels of a head together",
        module="mmlocal.ops.elsa.triton_impl",
        dtypes=tuple(_ATOL),
        deterministic=True,
        atol=_ATOL,
        **TRITON,
    ),
    Backend(
        name="cpp",
        description="C++ extension, vectors of channels",
        module="mmlocal.ops.elsa.cpp",
        devices=("cpu",),
        dtypes=tuple(_ATOL),
        deterministic=True,
        atol=_ATOL,
        requires=lambda: extension.unavailable_reason,
    ),
    Backend(
        name="eager",
        description="plain PyTorch, one tap at a time",
        module="mmlocal.ops.elsa.eager",
        devices=("any",),
        dtypes=tuple(_ATOL),
        deterministic=True,
        any_threads=False,  # PyTorch's exp and convolutions are cut by threads
        atol=_ATOL,
    ),
    Backend(
        name="reference",
        description="the definition, every window written out",
        module="mmlocal.ops.elsa.reference",
        devices=("any",),
        dtypes=tuple(_ATOL),
        deterministic=True,
        any_threads=False,
        atol=_ATOL,
    ),
)


def elsa_attention(
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None = None,
    ghost_add: Tensor | None = None,
    *,
    proj_weight: Tensor | None = None,
    proj_bias: Tensor | None = None,
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

    Taps are in row-major order, as in a cross-correlation. With ``proj_weight``, the logits are a
    1x1 convolution of ``attn``, which a backend may fold into its kernels (``triton`` does)::

        logits[p] = proj_weight @ attn[p] + proj_bias

    Args:
        value: ``(B, C, H, W)``, any float dtype and memory format. Zero outside the map.
        attn: ``(B, heads * kernel_size**2, H, W)``, head-major. Logits, or the weights themselves
            if ``softmax`` is false. Channels ``[n * C / heads, (n + 1) * C / heads)`` of ``value``
            use head ``n``. With ``proj_weight``, features ``(B, qk_dims, H, W)``.
        ghost_mul: ``(C, kernel_size, kernel_size)``, multiplicative ghost head, or ``None`` for 1.
            Not read if ``lam`` is 0. Must be positive if ``lam`` is no integer.
        ghost_add: ``(C, kernel_size, kernel_size)``, additive ghost head, or ``None`` for 0.
            Not read if ``gamma`` is 0.
        proj_weight: ``(heads * kernel_size**2, qk_dims)`` or, as in a convolution,
            ``(heads * kernel_size**2, qk_dims, 1, 1)``, dtype of ``attn``; ``None`` if ``attn``
            has the logits.
        proj_bias: ``(heads * kernel_size**2,)``, dtype of ``attn``; ``None`` for 0.
        kernel_size: odd width of the window, in taps.
        dilation: distance between taps, in pixels.
        lam: exponent of the multiplicative ghost head.
        gamma: factor of the additive ghost head.
        softmax: whether ``attn``, or what is made of it, still has to pass a softmax over the taps.
        backend: name out of ``BACKENDS``; ``None`` takes the one in the environment variable
            ``MMLOCAL_BACKEND`` or, if that is not set, the fastest that runs here.

    Returns:
        ``(B, C, H, W)``, dtype of ``value``; channels-last in memory if ``value`` is.

    Raises:
        TypeError: a tensor is not floating point, ``kernel_size`` or ``dilation`` is no int,
            ``lam`` or ``gamma`` is no number; ``triton`` is to fold a convolution of several
            dtypes. (Others leave that error to PyTorch's convolution.)
        ValueError: even ``kernel_size``, ``dilation`` below 1, shapes that do not fit each other,
            a map without pixels or channels, tensors on several devices, ``lam`` or ``gamma`` that
            is not finite, unknown ``backend``.
        RuntimeError: the named backend cannot run here, or has no derivatives of the kind asked
            for: all have first derivatives, ``torch.func.grad`` and ``vmap``; ``reference`` has
            higher and forward-mode derivatives too.

    Note:
        float16 and bfloat16 inputs are accumulated in float32. Taps outside the map take part in
        the softmax and add nothing to the sum, not even where a ghost head is infinite or NaN
        there. Infinity and NaN go where the equation takes them, in every backend: into the outputs
        and gradients of the windows that hold them, and into no others. An infinite result may be
        NaN where a weight is too small for the dtype of the computation (infinity times 0).

        A folded convolution does not round its logits to half precision, keeps ``attn`` for the
        backward pass in their place, and needs ``softmax`` (else it is not folded). Under autocast
        it is computed in the lower precision, as any.

        ``torch.compile`` and ``torch.export`` see one node. ``torch.fx.symbolic_trace`` cannot
        follow the checks: use ``torch.export.export``. ``torch.jit.script`` cannot read the
        function: use ``torch.export.export``, or ``torch.jit.trace``.

    Source:
        ELSA: Enhanced Local Self-Attention for Vision Transformer, Zhou et al. 2021,
        https://arxiv.org/abs/2112.12786, section 5, eq. 7 and 8. All published models have
        ``lam=0`` and ``gamma=1``.
    """
    _check(value, attn, proj_weight, proj_bias, ghost_mul, ghost_add, kernel_size, dilation)
    for name, factor in (("lam", lam), ("gamma", gamma)):
        if not isinstance(factor, (numbers.Real, torch.SymFloat)):
            raise TypeError(f"{name} must be a number, got {factor!r}")
        if not -math.inf < factor < math.inf:
            raise ValueError(f"{name} must be a finite number, got {factor}")
    dilation = min(dilation, _INT32)  # no map is larger; backends compute with it in int64
    # The ghost heads are small: raise and scale them in the precision of the accumulation.
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    ghost_mul = None if lam == 0 or ghost_mul is None else ghost_mul.to(dtype) ** lam
    ghost_add = None if gamma == 0 or ghost_add is None else gamma * ghost_add.to(dtype)
    name = choose_backend("elsa_attention", BACKENDS, value, backend).name
    if proj_weight is not None:
        if softmax and name in projection.MODULES:
            tensors = (value, attn, proj_weight, proj_bias, ghost_mul, ghost_add)
            return projection.attend_projected(*tensors, kernel_size, dilation, name)
        weight = proj_weight if proj_weight.dim() == 4 else proj_weight[:, :, None, None]
        attn = F.conv2d(attn, weight, proj_bias)
    args = (value, attn, ghost_mul, ghost_add, kernel_size, dilation, softmax)
    if name == "reference":
        return reference.forward(*args)
    return _elsa_attention(*args, name)


def _check(
    value: Tensor,
    attn: Tensor,
    proj_weight: Tensor | None,
    proj_bias: Tensor | None,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
) -> None:
    check_counts(kernel_size=kernel_size, dilation=dilation)
    check_tensors(
        "elsa_attention",
        value=value,
        attn=attn,
        proj_weight=proj_weight,
        proj_bias=proj_bias,
        ghost_mul=ghost_mul,
        ghost_add=ghost_add,
    )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be a positive odd number, got {kernel_size}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    for name, tensor in (("value", value), ("attn", attn)):
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must have the 4 dimensions (B, C, H, W), got {tuple(tensor.shape)}"
            )
    if 0 in value.shape[1:]:
        raise ValueError(
            f"value must have at least one channel and one pixel, got {tuple(value.shape)}"
        )
    taps = kernel_size**2
    name, logits = "attn", attn.shape[1]
    if proj_weight is not None:
        projection.check(attn, proj_weight, proj_bias)
        name, logits = "proj_weight", proj_weight.shape[0]
    elif proj_bias is not None:
        raise ValueError("proj_bias must be None without proj_weight")
    if logits == 0 or logits % taps:
        raise ValueError(
            f"{name} must have heads * kernel_size**2 channels (a multiple of {taps}), got {logits}"
        )
    heads = logits // taps
    if value.shape[1] % heads:
        raise ValueError(
            f"value must have a multiple of heads={heads} channels, got {value.shape[1]}"
        )
    if attn.shape[0] != value.shape[0] or attn.shape[2:] != value.shape[2:]:
        raise ValueError(
            f"attn must have the batch size and map of value {tuple(value.shape)}, "
            f"got {tuple(attn.shape)}"
        )
    ghost_shape = (value.shape[1], kernel_size, kernel_size)
    for name, ghost in (("ghost_mul", ghost_mul), ("ghost_add", ghost_add)):
        if ghost is not None and ghost.shape != ghost_shape:
            raise ValueError(
                f"{name} must have shape (C, kernel_size, kernel_size) = {ghost_shape}, "
                f"got {tuple(ghost.shape)}"
            )


def _implementation(backend: str):
    return next(b for b in BACKENDS if b.name == backend).load()


def _forward(value: Tensor, attn: Tensor, *args) -> Tensor:
    *args, backend = args
    return _implementation(backend).forward(value, attn, *_reachable(value, args))


def _backward(grad: Tensor, value: Tensor, attn: Tensor, *args) -> tuple[Tensor | None, ...]:
    *args, backend, needs_grad = args
    args = _reachable(value, args)
    return _implementation(backend).backward(grad, value, attn, *args, needs_grad)


def _reachable(value: Tensor, args: list) -> list:
    """The arguments behind ``attn``, with no ``dilation`` beyond the size of the map: it makes no
    difference, and cannot overflow."""
    *ghosts, kernel_size, dilation, softmax = args
    return [*ghosts, kernel_size, min(dilation, max(value.shape[2:])), softmax]


_elsa_attention = define_operator(
    op="elsa_attention",
    name="elsa_attention",
    tensors=("value", "attn", "ghost_mul?", "ghost_add?"),
    settings="int kernel_size, int dilation, bool softmax, str backend",
    forward=_forward,
    backward=_backward,
    fake=lambda value, *args: new_map(value, value.shape),
)

register_op(Op("elsa", elsa_attention, BACKENDS, "mmlocal.ops.elsa.analysis"))

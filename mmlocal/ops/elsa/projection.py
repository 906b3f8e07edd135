"""The ELSA op together with the 1x1 convolution that makes its logits, where a backend folds it.

Such a backend has a second module with ``forward`` and ``backward`` of the signatures in
``triton_projected``. All others get the logits from PyTorch's convolution.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from mmlocal.ops.layout import new_map

# The module of each backend that folds the convolution.
MODULES = {"triton": "mmlocal.ops.elsa.triton_projected"}


def check(attn: Tensor, proj_weight: Tensor, proj_bias: Tensor | None) -> None:
    """Raise a ValueError unless they make a 1x1 convolution."""
    dims = attn.shape[1]
    if dims == 0 or proj_weight.shape[1:] not in ((dims,), (dims, 1, 1)):
        raise ValueError(
            f"proj_weight must have the shape (heads * kernel_size**2, {dims}) of a 1x1 "
            f"convolution of attn {tuple(attn.shape)}, got {tuple(proj_weight.shape)}"
        )
    if proj_bias is not None and proj_bias.shape != proj_weight.shape[:1]:
        raise ValueError(
            f"proj_bias must have shape {tuple(proj_weight.shape[:1])}, "
            f"got {tuple(proj_bias.shape)}"
        )


def attend_projected(
    value: Tensor,
    attn: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    backend: str,
) -> Tensor:
    """Call the operator below as autocast would call the convolution.

    Raises:
        TypeError: the convolution has more than one dtype.
    """
    tensors = [attn, proj_weight.flatten(1), proj_bias]
    device = value.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tensors = [x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors]
    if len({x.dtype for x in tensors if x is not None}) > 1:
        raise TypeError(
            f"attn, proj_weight and proj_bias must have one dtype, "
            f"got {', '.join(str(x.dtype) for x in tensors if x is not None)}"
        )
    return _elsa_attention_projected(
        value, *tensors, ghost_mul, ghost_add, kernel_size, dilation, backend
    )


@torch.library.custom_op("mmlocal::elsa_attention_projected", mutates_args=())
def _elsa_attention_projected(
    value: Tensor,
    attn: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    backend: str,
) -> Tensor:
    args = (value, attn, proj_weight, proj_bias, ghost_mul, ghost_add, kernel_size, dilation)
    with torch.autocast(value.device.type, enabled=False):
        return importlib.import_module(MODULES[backend]).forward(*args)


@_elsa_attention_projected.register_fake
def _(value, attn, proj_weight, proj_bias, ghost_mul, ghost_add, kernel_size, dilation, backend):
    return new_map(value, value.shape)


# An op returns tensors only: an empty one stands for a gradient that is not needed.
@torch.library.custom_op("mmlocal::elsa_attention_projected_backward", mutates_args=())
def _elsa_attention_projected_backward(
    grad: Tensor,
    value: Tensor,
    attn: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    backend: str,
    needs_grad: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    args = (value, attn, proj_weight, proj_bias, ghost_mul, ghost_add, kernel_size, dilation)
    with torch.autocast(value.device.type, enabled=False):
        grads = importlib.import_module(MODULES[backend]).backward(grad, *args, needs_grad)
    return tuple(grad.new_empty(0) if g is None else g for g in grads)


@_elsa_attention_projected_backward.register_fake
def _(grad, *args):
    *inputs, _, _, _, needs_grad = args
    return tuple(
        (new_map(x, x.shape) if x.dim() == 4 else x.new_empty(x.shape))
        if needed
        else grad.new_empty(0)
        for x, needed in zip(inputs, needs_grad, strict=True)
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, kernel_size, dilation, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = (kernel_size, dilation, backend)


def _autograd_backward(ctx, grad):
    needs_grad = list(ctx.needs_input_grad[:6])
    grads = _elsa_attention_projected_backward(grad, *ctx.saved_tensors, *ctx.settings, needs_grad)
    grads = [g if needed else None for g, needed in zip(grads, needs_grad, strict=True)]
    return *grads, None, None, None


_elsa_attention_projected.register_autograd(_autograd_backward, setup_context=_setup_context)

"""The ELSA op together with the 1x1 convolution that makes its logits, where a backend folds it.

Such a backend has a second module with ``forward`` and ``backward`` of the signatures in
``triton_projected``. All others get the logits from PyTorch's convolution.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from mmlocal.ops.layout import new_map
from mmlocal.ops.operator import define_operator

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
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
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


def _forward(value: Tensor, *args) -> Tensor:
    *args, dilation, backend = args
    dilation = min(dilation, max(value.shape[2:]))
    return importlib.import_module(MODULES[backend]).forward(value, *args, dilation)


def _backward(grad: Tensor, value: Tensor, *args) -> tuple[Tensor | None, ...]:
    *args, dilation, backend, needs_grad = args
    dilation = min(dilation, max(value.shape[2:]))
    module = importlib.import_module(MODULES[backend])
    return module.backward(grad, value, *args, dilation, needs_grad)


_elsa_attention_projected = define_operator(
    op="elsa_attention",
    name="elsa_attention_projected",
    tensors=("value", "attn", "proj_weight", "proj_bias?", "ghost_mul?", "ghost_add?"),
    settings="int kernel_size, int dilation, str backend",
    forward=_forward,
    backward=_backward,
    fake=lambda value, *args: new_map(value, value.shape),
)

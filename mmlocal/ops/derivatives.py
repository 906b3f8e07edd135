"""The derivatives of an operator: autograd, and the transforms of ``torch.func``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import CustomOpDef


def differentiable(
    name: str, forward_op: CustomOpDef, backward_op: CustomOpDef, tables: list[bool]
) -> Callable[..., Tensor]:
    """Register the gradients of both operators, and return the first one for ``torch.func``.

    Args:
        name: public function, for error messages.
        forward_op: operator that takes tensors and settings. The last setting is the backend.
        backward_op: operator that takes the gradient of the output, the arguments of
            ``forward_op``, and which gradients are needed.
        tables: for each tensor, whether it has no batch even if it has four dimensions.

    Returns:
        ``forward_op`` as a function that the transforms of ``torch.func`` accept.
    """

    count = len(tables)

    def remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.settings = inputs[count:]

    def remember_settings(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.settings = inputs[1 + count : -1]

    def gradients_by(call: Callable[..., tuple]) -> Callable[..., tuple]:
        def differentiate(ctx: Any, grad: Tensor) -> tuple:
            needs_grad = list(ctx.needs_input_grad[:count])
            grads = call(grad, *ctx.saved_tensors, *ctx.settings, needs_grad)
            needed = (g if need else None for g, need in zip(grads, needs_grad, strict=True))
            return *needed, *[None] * len(ctx.settings)

        return differentiate

    def refuse(derivatives: str) -> Callable[..., NoReturn]:
        def differentiate(ctx: Any, *grads: Tensor) -> NoReturn:
            raise RuntimeError(
                f"{name}: backend={ctx.settings[-1]!r} has no {derivatives}; "
                "pass backend='reference', which has"
            )

        return differentiate

    no_second = refuse("second derivatives (autograd of the gradient)")
    no_jvp = refuse("forward-mode derivatives (torch.func.jvp)")

    def attention(*args: Any) -> Tensor:
        return (forward_op if _needs_no_function(args[:count]) else Attention.apply)(*args)

    def attention_gradients(*args: Any) -> tuple[Tensor, ...]:
        return (backward_op if _needs_no_function(args[: 1 + count]) else Gradients.apply)(*args)

    class Attention(torch.autograd.Function):
        forward = staticmethod(_with_signature(lambda *args: forward_op(*args)))
        setup_context = staticmethod(remember)
        backward = staticmethod(gradients_by(attention_gradients))
        vmap = staticmethod(lambda *args: _vmap(Attention.apply, tables, 0, *args))
        jvp = staticmethod(no_jvp)

    class Gradients(torch.autograd.Function):
        forward = staticmethod(_with_signature(lambda *args: backward_op(*args)))
        setup_context = staticmethod(remember_settings)
        backward = staticmethod(no_second)
        vmap = staticmethod(lambda *args: _vmap(Gradients.apply, tables, 1, *args))
        jvp = staticmethod(no_jvp)

    forward_op.register_autograd(gradients_by(backward_op), setup_context=remember)
    backward_op.register_autograd(no_second, setup_context=remember_settings)
    return attention


def _needs_no_function(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether the operator can be called without its ``torch.autograd.Function``.

    It can if nothing differentiates or transforms the tensors. The function takes as long as a
    kernel on a small map.
    """
    if torch.is_grad_enabled():
        return False
    try:
        # A tensor that torch.func transforms has no memory, whatever the mode of autograd.
        for x in tensors:
            if x is None:
                continue
            if type(x) not in (Tensor, torch.nn.Parameter):
                return False
            x.data_ptr()
    except RuntimeError:
        return False
    # Outside of all levels of forward-mode AD, a tensor is its own primal.
    first = tensors[0]
    return first is not None and forward_ad.unpack_dual(first).primal is first


def _with_signature(forward: Callable) -> Callable:
    """Store the signature of ``forward(*args)``, which ``apply`` inspects at each call."""
    args = inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)
    forward.__signature__ = inspect.Signature([args])  # type: ignore[attr-defined]
    return forward


def _vmap(
    call: Callable, tables: list[bool], first: int, info: Any, in_dims: tuple, *args: Any
) -> tuple:
    """Run the samples of vmap as one larger batch, or one by one if each has its own tables.

    Args:
        call: the operator.
        tables: for each tensor that it takes, whether it has no batch even if it has four
            dimensions.
        first: index of the first of these tensors. In a backward pass, the gradient comes before.
        info: object of ``torch.func`` that has the number of samples.
        in_dims: dimension of the samples in each argument, or ``None``.
        *args: arguments of the operator.

    Returns:
        The result, and the dimension of the samples in each of its tensors.
    """
    batched = [isinstance(x, Tensor) and d is not None for x, d in zip(args, in_dims, strict=True)]
    args = tuple(
        x.movedim(d, 0) if b else x for x, d, b in zip(args, in_dims, batched, strict=True)
    )
    count = len(tables)
    needed = args[-1] if first else [False] * count
    samples = info.batch_size
    of_tables = {first + i for i, table in enumerate(tables) if table}
    # The gradient of an output has a batch, whatever its dimensions.
    maps = [
        isinstance(x, Tensor) and (x.dim() - b >= 4 or i < first) and i not in of_tables
        for i, (x, b) in enumerate(zip(args, batched, strict=True))
    ]
    if any(
        isinstance(x, Tensor) and not is_map and (b or need)
        for x, is_map, b, need in zip(
            args[first:], maps[first:], batched[first:], needed, strict=False
        )
    ):
        results = [
            call(*(x[i] if b else x for x, b in zip(args, batched, strict=True)))
            for i in range(samples)
        ]
        if not first:
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * count

    def merged(x: Tensor, b: bool) -> Tensor:
        return (x if b else x.expand(samples, *x.shape)).flatten(0, 1)

    results = call(*(merged(x, b) if m else x for x, b, m in zip(args, batched, maps, strict=True)))
    if not first:
        return results.unflatten(0, (samples, results.shape[0] // samples)), 0
    return (
        tuple(
            x.unflatten(0, (samples, x.shape[0] // samples)) if need else x
            for x, need in zip(results, needed, strict=True)
        ),
        tuple(0 if need else None for need in needed),
    )

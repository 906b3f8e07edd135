"""Makes a PyTorch operator out of an op's backends: schema, fake, autograd, vmap, autocast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmlocal.ops.layout import new_map


def define_operator(
    op: str,
    name: str,
    tensors: Sequence[str],
    settings: str,
    forward: Callable[..., Tensor],
    backward: Callable[..., Sequence[Tensor | None]],
    fake: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """Register ``mmlocal::<name>`` and ``mmlocal::<name>_backward``; return the function to call.

    Compiled and exported code sees one node. All other code gets its gradient from a
    ``torch.autograd.Function``, because the transforms of ``torch.func`` accept nothing else.

    Args:
        op: public function, for error messages.
        name: operator.
        tensors: names of the first arguments, with ``?`` behind those that may be ``None``. A
            tensor of four dimensions is a map, whose samples do not depend on each other.
        settings: the other arguments as a schema declares them; the last one is ``str backend``.
        forward: takes all arguments.
        backward: takes the gradient of the output, all arguments, and one bool per tensor; returns
            the gradient of each tensor, or ``None`` where the bool is false.
        fake: takes all arguments; returns a tensor of the output's shape, dtype and strides.
    """
    count = len(tensors)
    declared = ", ".join(f"Tensor{'?' * t.endswith('?')} {t.rstrip('?')}" for t in tensors)

    # The backends accumulate in float32; autocast would have them convolve in bfloat16.
    def run(*args):
        with torch.autocast(args[0].device.type, enabled=False):
            return forward(*args)

    # An operator returns tensors only: an empty one stands for a gradient that is not needed.
    def run_backward(grad, *args):
        with torch.autocast(grad.device.type, enabled=False):
            grads = backward(grad, *args)
        return tuple(grad.new_empty(0) if g is None else g for g in grads)

    def fake_backward(grad, *args):
        return tuple(
            (new_map(x, x.shape) if x.dim() == 4 else x.new_empty(x.shape))
            if needed
            else grad.new_empty(0)
            for x, needed in zip(args[:count], args[-1], strict=True)
        )

    forward_op = torch.library.custom_op(
        f"mmlocal::{name}", run, mutates_args=(), schema=f"({declared}, {settings}) -> Tensor"
    )
    backward_op = torch.library.custom_op(
        f"mmlocal::{name}_backward",
        run_backward,
        mutates_args=(),
        schema=f"(Tensor grad, {declared}, {settings}, bool[] needs_grad) -> "
        f"({', '.join(['Tensor'] * count)})",
    )
    forward_op.register_fake(fake)
    backward_op.register_fake(fake_backward)

    def remember(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.settings = inputs[count:]

    def remember_settings(ctx, inputs, output) -> None:
        ctx.settings = inputs[1 + count : -1]

    def gradients_by(call):
        def differentiate(ctx, grad):
            needs_grad = list(ctx.needs_input_grad[:count])
            grads = call(grad, *ctx.saved_tensors, *ctx.settings, needs_grad)
            grads = [g if needed else None for g, needed in zip(grads, needs_grad, strict=True)]
            return *grads, *[None] * len(ctx.settings)

        return differentiate

    def refuse(derivatives: str):
        def differentiate(ctx, *grads):
            raise RuntimeError(
                f"{op}: backend={ctx.settings[-1]!r} has no {derivatives}; "
                "pass backend='reference', which has"
            )

        return staticmethod(differentiate)

    no_second = refuse("second derivatives (autograd of the gradient)")
    no_jvp = refuse("forward-mode derivatives (torch.func.jvp)")

    class Attention(torch.autograd.Function):
        forward = staticmethod(lambda *args: forward_op(*args))
        setup_context = staticmethod(remember)
        backward = staticmethod(gradients_by(lambda *args: Gradients.apply(*args)))
        vmap = staticmethod(lambda *args: _vmap(Attention.apply, count, 0, *args))
        jvp = no_jvp

    class Gradients(torch.autograd.Function):
        forward = staticmethod(lambda *args: backward_op(*args))
        setup_context = staticmethod(remember_settings)
        backward = no_second
        vmap = staticmethod(lambda *args: _vmap(Gradients.apply, count, 1, *args))
        jvp = no_jvp

    forward_op.register_autograd(gradients_by(backward_op), setup_context=remember)
    backward_op.register_autograd(no_second.__func__, setup_context=remember_settings)

    def call(*args):
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return forward_op(*args)
        return Attention.apply(*args)

    return call


def _vmap(call: Callable, count: int, first: int, info, in_dims: tuple, *args):
    """Samples of vmap as more samples of one batch; one by one if each has tables of its own.

    Args:
        count, first: number of tensors that the operator takes, and index of the first; for a
            backward pass, the argument before them is the gradient.
    """
    batched = [isinstance(x, Tensor) and d is not None for x, d in zip(args, in_dims, strict=True)]
    args = [x.movedim(d, 0) if b else x for x, d, b in zip(args, in_dims, batched, strict=True)]
    needed = args[-1] if first else [False] * count
    samples = info.batch_size
    if any(
        isinstance(x, Tensor) and x.dim() - b < 4 and (b or need)
        for x, b, need in zip(args[first:], batched[first:], needed, strict=False)
    ):
        results = [
            call(*(x[i] if b else x for x, b in zip(args, batched, strict=True)))
            for i in range(samples)
        ]
        if not first:
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * count

    def merged(x, b: bool):
        if not isinstance(x, Tensor) or x.dim() - b < 4:
            return x
        return (x if b else x.expand(samples, *x.shape)).flatten(0, 1)

    results = call(*(merged(x, b) for x, b in zip(args, batched, strict=True)))
    if not first:
        return results.unflatten(0, (samples, results.shape[0] // samples)), 0
    return (
        tuple(
            x.unflatten(0, (samples, x.shape[0] // samples)) if need else x
            for x, need in zip(results, needed, strict=True)
        ),
        tuple(0 if need else None for need in needed),
    )

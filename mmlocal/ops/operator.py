"""One class for operators: schema, shapes, gradients, vmap, autocast, choice of backend."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.library import CustomOpDef

from mmlocal.ops.backends import Backend, choose_backend
from mmlocal.ops.layout import new_map

_INT32 = 2**31 - 1


def like_value(value: Tensor, *args: Any) -> Tensor:
    """Return an empty map of the shape, dtype and memory format of ``value``."""
    return new_map(value, value.shape)


class Operator:
    """A PyTorch operator with several backends: ``mmlocal::<name>`` and its gradient.

    Compiled and exported code sees one node. All other code gets the gradient from a
    ``torch.autograd.Function``, because the transforms of ``torch.func`` accept nothing else. The
    backend ``reference`` runs outside the operator, so autograd gives it derivatives of any order.

    The module of a backend has two functions: ``forward`` with the signature of the definition,
    and ``backward(grad, *args, needs_grad)``, which returns the gradient of each tensor, or
    ``None`` where ``needs_grad`` is false.

    Autocast never reaches a backend. It would make a convolution in bfloat16 out of a sum that has
    to be in float32.

    Args:
        name: name of the public function and of the operator.
        definition: ``forward`` of the backend ``reference``. Its type hints give the schema. The
            tensors come first. A tensor of four or more dimensions has a batch first, and one of
            four is a map, unless ``tables`` names it. The samples of a batch do not depend on each
            other. The first tensor is a map, and the output has a batch.
        backends: implementations, fastest first.
        fake: function that takes all arguments and returns an empty tensor of the output's shape,
            dtype and strides.
        step: name of the argument that is a distance in pixels, such as a dilation or a stride.
            Distances that lead beyond the map, or beyond its ``padding`` if there is such an
            argument, all give the same result. The operator cuts the distance there, so it can
            neither overflow nor fill the memory in a backend.
        tables: names of the tensors that may have four dimensions but no batch, such as the weight
            ``(C, 1, k, k)`` of a depth-wise convolution.

    Raises:
        ValueError: ``tables`` names an argument that is not a tensor, or ``step`` names none.
    """

    def __init__(
        self,
        name: str,
        definition: Callable[..., Tensor],
        backends: tuple[Backend, ...],
        *,
        fake: Callable[..., Tensor] = like_value,
        step: str | None = None,
        tables: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.definition = definition
        self.backends = backends
        schema = torch.library.infer_schema(definition, mutates_args=())
        # Kernels are compiled for one window, so its size is a number and never a symbol. The sizes
        # of maps, a list, may be symbols.
        arguments = schema.partition(") -> ")[0].removeprefix("(").replace("SymInt ", "int ")
        # A call passes all arguments, and no default may come before the backend.
        declared = [argument.partition("=")[0] for argument in arguments.split(", ")]
        arguments = ", ".join(declared)
        self._arguments = [argument.split()[1] for argument in declared]
        self._count = sum(argument.startswith("Tensor") for argument in declared)
        names = self._arguments[: self._count]
        if unknown := set(tables) - set(names):
            raise ValueError(
                f"{name}: tables must be among {', '.join(names)}, got {', '.join(sorted(unknown))}"
            )
        self._tables = [argument in tables for argument in names]
        if step is not None and step not in self._arguments:
            raise ValueError(f"step must be an argument of the definition, got {step!r}")
        self._step = None if step is None else self._arguments.index(step)
        self._padding = self._arguments.index("padding") if "padding" in self._arguments else None
        self._forward_op = torch.library.custom_op(
            f"mmlocal::{name}",
            self._forward,
            mutates_args=(),
            schema=f"({arguments}, str backend) -> Tensor",
        )
        self._backward_op = torch.library.custom_op(
            f"mmlocal::{name}_backward",
            self._backward,
            mutates_args=(),
            schema=f"(Tensor grad, {arguments}, str backend, bool[] needs_grad) -> "
            f"({', '.join(['Tensor'] * self._count)})",
        )
        self._forward_op.register_fake(fake)
        self._backward_op.register_fake(self._fake_backward)
        self._apply = _differentiable(name, self._forward_op, self._backward_op, self._tables)

    def __call__(self, *args: Any, backend: str | None) -> Tensor:
        """Run on the named backend, or on the fastest one that can take the first tensor.

        Args:
            *args: all arguments of the definition.
            backend: name of a backend, or ``None`` for the fastest; see
                :func:`mmlocal.ops.backends.choose_backend`.
        """
        chosen = choose_backend(self.name, self.backends, args[0], backend).name
        args = self._cut(args, _INT32)  # integers of the schema have 64 bits
        if chosen == "reference":
            return self.definition(*args)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._forward_op(*args, chosen)
        return self._apply(*args, chosen)

    def _cut(self, args: tuple, limit: int) -> tuple:
        if self._step is None:
            return args
        index = self._step
        return (*args[:index], min(args[index], limit), *args[index + 1 :])

    def _prepare(self, args: tuple) -> tuple:
        padding = 0 if self._padding is None else args[self._padding]
        return self._cut(args, max(args[0].shape[2:]) + 2 * padding)

    def _implementation(self, backend: str) -> ModuleType:
        return next(b for b in self.backends if b.name == backend).load()

    def _forward(self, *args: Any) -> Tensor:
        implementation = self._implementation(args[-1])
        with torch.autocast(args[0].device.type, enabled=False):
            return implementation.forward(*self._prepare(args[:-1]))

    # An operator must return tensors, so an empty one stands for a gradient that is not needed.
    def _backward(self, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *_, backend, needs_grad = args
        implementation = self._implementation(backend)
        with torch.autocast(grad.device.type, enabled=False):
            grads = implementation.backward(grad, *self._prepare(args[:-2]), needs_grad)
        return tuple(grad.new_empty(0) if g is None else g for g in grads)

    def _fake_backward(self, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        return tuple(
            (new_map(x, x.shape) if x.dim() == 4 and not table else x.new_empty(x.shape))
            if needed
            else grad.new_empty(0)
            for x, table, needed in zip(args[: self._count], self._tables, args[-1], strict=True)
        )


def as_for_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast does for a convolution, if it is on for the device of ``x``."""
    device = x.device.type
    # There is no autocast for meta tensors. Dynamo cannot trace torch.amp.is_autocast_available, so
    # the device is named.
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def lower(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return lower(x), lower(weight), None if bias is None else lower(bias)


def _differentiable(
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

    class Attention(torch.autograd.Function):
        forward = staticmethod(lambda *args: forward_op(*args))
        setup_context = staticmethod(remember)
        backward = staticmethod(gradients_by(lambda *args: Gradients.apply(*args)))
        vmap = staticmethod(lambda *args: _vmap(Attention.apply, tables, 0, *args))
        jvp = staticmethod(no_jvp)

    class Gradients(torch.autograd.Function):
        forward = staticmethod(lambda *args: backward_op(*args))
        setup_context = staticmethod(remember_settings)
        backward = staticmethod(no_second)
        vmap = staticmethod(lambda *args: _vmap(Gradients.apply, tables, 1, *args))
        jvp = staticmethod(no_jvp)

    forward_op.register_autograd(gradients_by(backward_op), setup_context=remember)
    backward_op.register_autograd(no_second, setup_context=remember_settings)
    return Attention.apply


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

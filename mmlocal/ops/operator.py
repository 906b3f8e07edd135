"""One class for operators: schema, shapes, gradients, vmap, autocast, choice of backend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from mmlocal.ops.backends import Backend, choose_backend
from mmlocal.ops.derivatives import differentiable
from mmlocal.ops.layout import new_map

_INT32 = 2**31 - 1

# The plain form of each operator, as a decomposition for ``ExportedProgram.run_decompositions``.
PLAIN_FORMS: dict[OpOverload, Callable[..., Tensor]] = {}


def like_value(value: Tensor, *args: Any) -> Tensor:
    """Return an empty map of the shape, dtype and memory format of ``value``."""
    return new_map(value, value.shape)


class Operator:
    """A PyTorch operator with several backends: ``mmlocal::<name>`` and its gradient.

    Compiled and exported code sees one node. ONNX has no such node, so ``torch.onnx.export`` sees
    the function ``plain`` instead. All other code gets the gradient from a
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
        plain: function with the signature of ``definition`` that is made of operators that ONNX
            has, and holds no windows. Sizes of maps and batches may be symbols. ``None`` for
            ``definition``.

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
        plain: Callable[..., Tensor] | None = None,
    ) -> None:
        self.name = name
        self.definition = definition
        self.plain = plain or definition
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
        self._apply = differentiable(name, self._forward_op, self._backward_op, self._tables)
        overload = getattr(torch.ops.mmlocal, name).default
        PLAIN_FORMS[overload] = lambda *args: self.plain(*args[:-1])

    def __call__(self, *args: Any, backend: str | None) -> Tensor:
        """Run on the named backend, or on the fastest one that can take the first tensor.

        Args:
            *args: all arguments of the definition.
            backend: name of a backend, or ``None`` for the fastest; see
                :func:`mmlocal.ops.backends.choose_backend`.
        """
        chosen = choose_backend(self.name, self.backends, args[0], backend).name
        args = self._cut(args, _INT32)  # integers of the schema have 64 bits
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if traced and torch.onnx.is_in_onnx_export():
            return self.plain(*args)
        if chosen == "reference":
            return self.definition(*args)
        if traced:
            return self._forward_op(*args, chosen)
        return self._apply(*args, chosen)

    def _cut(self, args: tuple, limit: int) -> tuple:
        index = self._step
        if index is None or args[index] <= limit:
            return args
        return (*args[:index], limit, *args[index + 1 :])

    def _prepare(self, args: tuple) -> tuple:
        padding = 0 if self._padding is None else args[self._padding]
        return self._cut(args, max(args[0].shape[2:]) + 2 * padding)

    def _implementation(self, backend: str) -> ModuleType:
        return next(b for b in self.backends if b.name == backend).load()

    def _forward(self, *args: Any) -> Tensor:
        implementation = self._implementation(args[-1])
        with _without_autocast(args[0]):
            return implementation.forward(*self._prepare(args[:-1]))

    # An operator must return tensors, so an empty one stands for a gradient that is not needed.
    def _backward(self, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *_, backend, needs_grad = args
        implementation = self._implementation(backend)
        with _without_autocast(grad):
            grads = implementation.backward(grad, *self._prepare(args[:-2]), needs_grad)
        return tuple(grad.new_empty(0) if g is None else g for g in grads)

    def _fake_backward(self, grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        return tuple(
            (new_map(x, x.shape) if x.dim() == 4 and not table else x.new_empty(x.shape))
            if needed
            else grad.new_empty(0)
            for x, table, needed in zip(args[: self._count], self._tables, args[-1], strict=True)
        )


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """Turn autocast off for the device of ``x``. That takes time, so only where it is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


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

"""Contestants of the benchmark of ops. Each contestant is one way to mix neighbouring pixels.

Projections are not part of a contestant. So our ops start from the tensors that their layers pass,
convolutions start from the values, and other attention starts from queries, keys and values. The
tensors have the memory layout that a layer would pass: channels last for maps, and
``(B, H, W, heads, head_dims)`` for attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mmlocal.ops import OPS
from mmlocal.ops.cases import Case, Make

# Input tensors by name, and the function to time on them.
Built = tuple[dict[str, Tensor], Callable[..., Tensor]]


class CannotRunError(RuntimeError):
    """A contestant does not fit this case or machine. The message is the reason."""


def has_windows(op: str) -> bool:
    """Whether an op mixes windows of pixels, as convolutions do. Its analysis may say no.

    Args:
        op: name out of ``OPS``.
    """
    return getattr(OPS[op].load_analysis(), "WINDOWS", True)


@dataclass(frozen=True)
class Contestant:
    """One way to mix neighbouring pixels.

    Args:
        name: name of the backend or peer.
        description: one line for the report.
        build: function that makes the input tensors for a case, and returns them with the function
            to time. It may raise :class:`CannotRunError`.
        ops: names of the ops to compare it with; ``None`` for all that have windows.
    """

    name: str
    description: str
    build: Callable[[Case, Make], Built]
    ops: tuple[str, ...] | None = None

    def stands_beside(self, op: str) -> bool:
        """Whether the contestant is timed on the shapes of an op.

        Args:
            op: name out of ``OPS``.
        """
        return has_windows(op) if self.ops is None else op in self.ops


def make_tensors(device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> Make:
    """Return a function that makes a tensor of normal numbers from a shape, with gradient.

    Args:
        device: device of the tensors.
        dtype: data type of the tensors.
        seed: on one kind of device, the same seed gives the same numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def make(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, device=device).to(dtype)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_()

    return make


def op_function(case: Case, backend: str) -> Callable[..., Tensor]:
    """Bind the op of a case to the settings of the case, as a function of its tensors.

    Args:
        case: shape of the op.
        backend: name of the backend.
    """
    op = OPS[case.op]
    return partial(op.function, **op.load_analysis().settings(case), backend=backend)


def op_tensors(case: Case, make: Make) -> dict[str, Tensor]:
    """Make the tensors for the function that :func:`op_function` returns.

    Args:
        case: shape of the op.
        make: result of :func:`make_tensors`.
    """
    return OPS[case.op].load_analysis().make_inputs(case, make)


def list_backends(op: str) -> list[Contestant]:
    """List all backends of an op as contestants, fastest first, even if they cannot run here.

    Args:
        op: name out of ``OPS``.
    """
    return [
        Contestant(backend.name, backend.description, partial(_backend, backend.name), (op,))
        for backend in OPS[op].backends
    ]


def _backend(name: str, case: Case, make: Make) -> Built:
    if name == "reference":
        _check_windows_fit(case, make(1))
    return op_tensors(case, make), op_function(case, name)


def _check_windows_fit(case: Case, like: Tensor) -> None:
    """Refuse ``reference`` if its windows do not fit into main memory."""
    # With gradients, it holds at least six copies of all values in all windows.
    check_memory(6 * OPS[case.op].load_analysis().window_values(case), like)


def check_memory(numbers: int, like: Tensor) -> None:
    """Refuse a contestant that holds more numbers at once than main memory does.

    Args:
        numbers: how many numbers the contestant holds.
        like: tensor of the dtype and device of the contestant.

    Raises:
        CannotRunError: they do not fit.
    """
    needed = numbers * max(4, like.element_size())
    free = available_memory()
    if like.device.type == "cpu" and free is not None and needed > free:
        raise CannotRunError(f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free")


def available_memory() -> int | None:
    """Bytes of main memory that a process can still get; ``None`` if the system does not say.

    Linux kills a process that takes more, so a benchmark has to ask first.
    """
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None

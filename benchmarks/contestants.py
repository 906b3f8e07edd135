"""Contestants of the benchmark of ops: one way each to mix neighbouring pixels.

A contestant starts where its projections end: our ops at the tensors that a layer hands them,
convolutions at the values, other attention at queries, keys and values. Its tensors are laid out
as a layer hands them over: maps channels last, ``(B, H, W, heads, head_dims)`` for attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mmlocal.ops import OPS
from mmlocal.ops.cases import Case, Make

# Input tensors, and the function of them that is timed.
Built = tuple[dict[str, Tensor], Callable[..., Tensor]]


class CannotRunError(RuntimeError):
    """A contestant does not fit this case or machine; says why."""


@dataclass(frozen=True)
class Contestant:
    """One way to mix neighbouring pixels.

    Args:
        name: of the backend or peer.
        description: one line for the report.
        build: makes, from a case, the input tensors and the function that is timed on them.
            Raises :class:`CannotRunError`.
        ops: names of the ops that it stands beside; ``None`` for all.
    """

    name: str
    description: str
    build: Callable[[Case, Make], Built]
    ops: tuple[str, ...] | None = None

    def stands_beside(self, op: str) -> bool:
        """Whether it is timed on the shapes of ``op``."""
        return self.ops is None or op in self.ops


def make_tensors(device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> Make:
    """The ``make`` that contestants are built with: normal numbers, the same for every seed."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator).to(device, dtype)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_()

    return make


def op_function(case: Case, backend: str) -> Callable[..., Tensor]:
    """The op with the settings of a case, as a function of its tensors."""
    op = OPS[case.op]
    return partial(op.function, **op.load_analysis().settings(case), backend=backend)


def op_tensors(case: Case, make: Make) -> dict[str, Tensor]:
    """Arguments of :func:`op_function`."""
    return OPS[case.op].load_analysis().make_inputs(case, make)


def list_backends(op: str) -> list[Contestant]:
    """All backends of an op as contestants, whether they run here or not, fastest first."""
    return [
        Contestant(backend.name, backend.description, partial(_backend, backend.name), (op,))
        for backend in OPS[op].backends
    ]


def _backend(name: str, case: Case, make: Make) -> Built:
    if name == "reference":
        _check_windows_fit(case, make(1))
    return op_tensors(case, make), op_function(case, name)


def _check_windows_fit(case: Case, like: Tensor) -> None:
    """``reference`` writes out windows: with gradients, at least six times the values in them."""
    values = OPS[case.op].load_analysis().window_values(case)
    needed = 6 * values * max(4, like.element_size())
    free = available_memory()
    if like.device.type == "cpu" and free is not None and needed > free:
        raise CannotRunError(f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free")


def available_memory() -> int | None:
    """Bytes of main memory that a process can still get, or ``None`` where the system has no say.

    Linux kills a process that takes more, instead of failing an allocation.
    """
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None

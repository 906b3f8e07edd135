"""Which backend runs an op: what each supports is data, read by dispatch, tests and ``info``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Args:
        name: what a user passes as ``backend=``.
        description: one line for ``python -m mmlocal.info``.
        module: dotted path of the module that holds the implementation; imported on first use.
        devices: device types it runs on; ``"any"`` for all.
        dtypes: dtypes of ``value`` that it takes.
        deterministic: whether two runs give bit-equal results, gradients included.
        atol: largest error per dtype against ``reference`` in float64, relative to the largest
            reference value; gradients included.
        requires: returns why the backend cannot run in this environment, or ``None``.
    """

    name: str
    description: str
    module: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    deterministic: bool
    atol: Mapping[torch.dtype, float]
    requires: Callable[[], str | None] = lambda: None

    def unavailable_reason(self) -> str | None:
        """Why this backend cannot run in this environment, or ``None`` if it can."""
        return self.requires()

    def not_supported_reasons(self, value: Tensor) -> list[str]:
        """Why this backend cannot take ``value`` here; an empty list if it can."""
        reasons = []
        if reason := self.unavailable_reason():
            reasons.append(reason)
        if "any" not in self.devices and value.device.type not in self.devices:
            reasons.append(f"runs on {', '.join(self.devices)}, not on {value.device.type}")
        if value.dtype not in self.dtypes:
            reasons.append(f"does not take {value.dtype}")
        return reasons

    def load(self) -> ModuleType:
        """Import the implementation."""
        return importlib.import_module(self.module)


# The packages under ``mmlocal.ops`` that hold an op; each one has a ``BACKENDS`` tuple.
_OPS = {"elsa": "mmlocal.ops.elsa", "qna": "mmlocal.ops.qna"}


def list_ops() -> dict[str, tuple[Backend, ...]]:
    """All ops with their backends, fastest first."""
    return {name: importlib.import_module(module).BACKENDS for name, module in _OPS.items()}


def choose_backend(
    op: str, backends: tuple[Backend, ...], value: Tensor, name: str | None
) -> Backend:
    """The named backend, or the first one that can take ``value``.

    Raises:
        ValueError: ``name`` is none of ``backends``.
        RuntimeError: the named backend, or every backend, cannot run here; says why.
    """
    if name is not None:
        candidates = tuple(b for b in backends if b.name == name)
        if not candidates:
            names = ", ".join(b.name for b in backends)
            raise ValueError(f"{op}: backend must be one of {names}, got {name!r}")
    else:
        candidates = backends
    failures = []
    for backend in candidates:
        reasons = backend.not_supported_reasons(value)
        if not reasons:
            return backend
        failures.append(f"{backend.name}: {'; '.join(reasons)}")
    raise RuntimeError(f"{op}: no backend can run here ({' | '.join(failures)})")

"""Which backend runs an op: what each supports is data, read by dispatch, tests and ``info``."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from mmlocal.ops import extension


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Args:
        name: what a user passes as ``backend=``.
        description: one line for ``python -m mmlocal.info``.
        module: dotted path of the module that holds the implementation; imported on first use.
        devices: device types it runs on; ``"any"`` for all.
        dtypes: dtypes of ``value`` that it takes.
        deterministic: whether two runs on as many threads give bit-equal results, gradients
            included.
        atol: largest error per dtype against ``reference`` in float64 on the same numbers, relative
            to the largest reference value, gradients included. A gradient that passes a softmax is
            a difference: its error is relative to the largest sum of the magnitudes of its terms.
            See ``tolerance`` for positions that are large.
        any_threads: whether the results do not depend on the number of threads either.
        requires: returns why the backend cannot run in this environment, or ``None``.
        only_if_named: whether ``backend=None`` leaves it out.
    """

    name: str
    description: str
    module: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    deterministic: bool
    atol: Mapping[torch.dtype, float]
    any_threads: bool = True
    requires: Callable[[], str | None] = lambda: None
    only_if_named: bool = False

    def unavailable_reason(self) -> str | None:
        """Why this backend cannot run in this environment, or ``None`` if it can."""
        if reason := self.requires():
            return reason
        # The compiler cannot trace an import. It asks again at run time, when the backend loads.
        if not torch.compiler.is_compiling() and self.module not in _IMPORTED:
            try:
                importlib.import_module(self.module)
                _IMPORTED.add(self.module)
            except Exception as error:  # whatever a broken installation raises
                return f"its module does not import: {type(error).__name__}: {error}"
        return None

    def not_supported_reasons(self, value: Tensor) -> list[str]:
        """Why this backend cannot take ``value`` here; an empty list if it can."""
        reasons = []
        if reason := self.unavailable_reason():
            reasons.append(reason)
        # A tensor without numbers only asks for shapes.
        runs_on = (*self.devices, "meta")
        if "any" not in self.devices and value.device.type not in runs_on:
            reasons.append(f"runs on {', '.join(self.devices)}, not on {value.device.type}")
        if value.dtype not in self.dtypes:
            reasons.append(f"does not take {value.dtype}")
        return reasons

    def tolerance(self, dtype: torch.dtype, position: float = 0.0) -> float:
        """``atol`` for entries of ``rel_pos`` up to ``position`` in magnitude.

        Those above 16 leave fewer digits to the exponents they are added to.
        """
        return self.atol[dtype] * max(1.0, position / 16)

    def load(self) -> ModuleType:
        """Import the implementation."""
        return importlib.import_module(self.module)


# Modules of backends that have been imported without an error.
_IMPORTED: set[str] = set()

# Names a backend for every call with ``backend=None``.
ENVIRONMENT_VARIABLE = "MMLOCAL_BACKEND"


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # something stands in its place
        return False


def _triton_version() -> tuple[int, ...] | None:
    """Of the distribution that is imported as ``triton``: major and minor; ``None`` without it."""
    if not _is_installed("triton"):
        return None
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            return tuple(int(x) for x in importlib.metadata.version(name).split(".")[:2])
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
    return ()


# All at import: torch.compile must not meet them, and Triton reads the variable only once too.
_TRITON_VERSION = _triton_version()
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The first release that compiles the kernels: 3.2 has no ``tl.gather`` and no tuples as arguments.
MIN_TRITON = (3, 3)


def _triton_unavailable_reason() -> str | None:
    if _TRITON_VERSION is None:
        return "triton is not installed"
    if _TRITON_VERSION < MIN_TRITON:
        found = ".".join(map(str, _TRITON_VERSION)) or "of unknown version"
        return f"needs triton {MIN_TRITON[0]}.{MIN_TRITON[1]} or newer, this is {found}"
    if not TRITON_INTERPRETED and not torch.cuda.is_available():
        return "no CUDA device (TRITON_INTERPRET=1 in the environment tries the kernels on a CPU)"
    return None


# Defaults of each kind of backend, fastest first. ``module`` lies in the folder of the op.
_KINDS: dict[str, dict] = {
    "triton": dict(
        description="Triton kernels",
        module="triton_impl",
        # Triton's interpreter is there to test and debug the kernels.
        devices=("cpu", "cuda") if TRITON_INTERPRETED else ("cuda",),
        requires=_triton_unavailable_reason,
        only_if_named=TRITON_INTERPRETED,
    ),
    "cpp": dict(
        description="C++ extension",
        module="cpp",
        devices=("cpu",),
        requires=lambda: extension.unavailable_reason,
    ),
    "eager": dict(
        description="plain PyTorch, one tap at a time",
        module="eager",
        devices=("any",),
        any_threads=False,  # PyTorch's exp and convolutions are cut by threads
    ),
    "reference": dict(
        description="the definition, every window written out",
        module="reference",
        devices=("any",),
        any_threads=False,
    ),
}


def make_backends(
    package: str, atol: Mapping[torch.dtype, float], **changes: dict
) -> tuple[Backend, ...]:
    """The backends of an op, fastest first: ``eager``, ``reference`` and those that are named.

    Args:
        package: dotted name of the op's folder, which has a module for each backend.
        atol: largest error per dtype, see :class:`Backend`; its keys are the dtypes to support.
        **changes: ``triton`` or ``cpp`` if the op has it, as a dict of what differs from the
            defaults above; ``eager`` and ``reference`` likewise.

    Example::

        BACKENDS = make_backends(__name__, ATOL, triton=dict(description="one program a head"))
    """
    if unknown := set(changes) - set(_KINDS):
        raise ValueError(f"changes must be of {', '.join(_KINDS)}, got {', '.join(unknown)}")
    backends = []
    for name, defaults in _KINDS.items():
        if name in changes or name in ("eager", "reference"):
            settings = dict(atol=atol, deterministic=True) | defaults | changes.get(name, {})
            settings["module"] = f"{package}.{settings['module']}"
            settings.setdefault("dtypes", tuple(settings["atol"]))
            backends.append(Backend(name=name, **settings))
    return tuple(backends)


def choose_backend(
    op: str, backends: tuple[Backend, ...], value: Tensor, name: str | None
) -> Backend:
    """The named backend, or the first one that can take ``value``.

    Without a name, the environment variable ``MMLOCAL_BACKEND`` names one, for all ops.

    A faster backend for this device that is left out because something is missing is told once,
    as a warning.

    Raises:
        ValueError: ``name`` or the variable is none of ``backends``.
        RuntimeError: the named backend, or every backend, cannot run here; says why.
    """
    source = "backend"
    if name is None:
        name = os.environ.get(ENVIRONMENT_VARIABLE) or None
        source = ENVIRONMENT_VARIABLE
    if name is not None:
        candidates = tuple(b for b in backends if b.name == name)
        if not candidates:
            names = ", ".join(b.name for b in backends)
            raise ValueError(f"{op}: {source} must be one of {names}, got {name!r}")
    else:
        candidates = tuple(b for b in backends if not b.only_if_named)
    failures = []
    for backend in candidates:
        reasons = backend.not_supported_reasons(value)
        if not reasons:
            if name is None and not torch.compiler.is_compiling():
                _tell_what_is_missing(candidates, backend, value.device.type)
            return backend
        failures.append(f"{backend.name}: {'; '.join(reasons)}")
    asked = f"; {source} asks for it" if name and source == ENVIRONMENT_VARIABLE else ""
    raise RuntimeError(f"{op}: no backend can run here ({' | '.join(failures)}){asked}")


def _tell_what_is_missing(candidates: tuple[Backend, ...], chosen: Backend, device: str) -> None:
    """Warn of each backend before ``chosen`` that is for this device and cannot run."""
    for backend in candidates[: candidates.index(chosen)]:
        reason = backend.unavailable_reason()
        if reason and device in backend.devices:
            _warn_once(
                f"mmlocal runs its {chosen.name} backend on this {device}, which is several times "
                f"slower than {backend.name}: {reason}"
            )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=6)  # the caller of the public function

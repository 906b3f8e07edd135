"""The backends of ops, as data that dispatch, tests and ``info`` read."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from mmlocal.ops import extension


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Args:
        name: value of ``backend=`` that selects it.
        description: one line for ``python -m mmlocal.info``.
        module: dotted path of the module that holds the implementation; imported on first use.
        devices: device types it runs on; ``"any"`` for all.
        dtypes: dtypes of ``value`` that it takes.
        deterministic: whether two runs on as many threads give bit-equal results, gradients
            included.
        atol: largest error by dtype of outputs and gradients. The error is measured against
            ``reference`` in float64 on the same numbers, relative to the largest reference value.
            A gradient that passes through a softmax is a difference, so its error is relative to
            the largest sum of the magnitudes of its terms. If an op adds a table to exponents, and
            the table has entries above 16, the error may be larger by the largest entry over 16.
        any_threads: whether the results are the same for every number of threads.
        requires: function that returns why the backend cannot run in this environment, or ``None``.
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
        if not self._runs_on(value.device.type):
            reasons.append(f"runs on {', '.join(self.devices)}, not on {value.device.type}")
        if value.dtype not in self.dtypes:
            reasons.append(f"does not take {value.dtype}")
        return reasons

    def supports(self, value: Tensor) -> bool:
        """Whether :meth:`not_supported_reasons` is empty. Each call of an op asks this."""
        return (
            self._runs_on(value.device.type)
            and value.dtype in self.dtypes
            and self.unavailable_reason() is None
        )

    def _runs_on(self, device: str) -> bool:
        # A meta tensor has no numbers: the call only asks for shapes.
        return device in self.devices or device == "meta" or "any" in self.devices

    def load(self) -> ModuleType:
        """Import the implementation."""
        return importlib.import_module(self.module)


# Modules of backends that have been imported without an error.
_IMPORTED: set[str] = set()

# This variable names the backend of every call with ``backend=None``.
ENVIRONMENT_VARIABLE = "MMLOCAL_BACKEND"


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a module of this name that is not the library
        return False


def _triton_version() -> tuple[int, ...] | None:
    """Major and minor version of the installed ``triton``; ``None`` if there is none."""
    if not _is_installed("triton"):
        return None
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            return tuple(int(x) for x in importlib.metadata.version(name).split(".")[:2])
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
    return ()


# These are read at import: torch.compile must not meet them, and Triton also reads the variable
# only once.
_TRITON_VERSION = _triton_version()
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The oldest release that compiles the kernels. 3.2 lacks ``tl.gather`` and tuples as arguments.
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


# Defaults of each kind of backend, fastest first. ``module`` is a file in the folder of the op.
_KINDS: dict[str, dict] = {
    "triton": dict(
        description="Triton kernels",
        module="triton_impl",
        # Triton's interpreter only tests and debugs the kernels.
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
        any_threads=False,  # PyTorch splits exp and convolutions by threads
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
    """Return the backends of an op, fastest first: ``eager``, ``reference`` and the named ones.

    Args:
        package: dotted name of the op's folder, which has a module for each backend.
        atol: largest error by dtype, see :class:`Backend`. Its keys are the supported dtypes.
        **changes: the name of a backend, and a dict of its differences from the defaults.
            ``triton`` and ``cpp`` must be named if the op has them, ``eager`` and ``reference`` may
            be.

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
    """Return the named backend, or the first one that can take ``value``.

    A warning, shown once, names each faster backend for this device that cannot run.

    Args:
        op: name of the op, for error messages.
        backends: all backends of the op, fastest first.
        value: the first tensor of the call. Its device and dtype must be supported.
        name: name of a backend. If it is ``None``, the environment variable ``MMLOCAL_BACKEND`` may
            name one for all ops. An op that has no such backend runs ``eager``.

    Raises:
        ValueError: ``name`` or the variable does not name one of ``backends``.
        RuntimeError: the named backend, or every backend, cannot run here. The message says why.
    """
    source = "backend"
    if name is None:
        name = os.environ.get(ENVIRONMENT_VARIABLE) or None
        source = ENVIRONMENT_VARIABLE
    if name is not None:
        candidates = [b for b in backends if b.name == name]
        if not candidates and source == ENVIRONMENT_VARIABLE and name in _KINDS:
            return choose_backend(op, backends, value, "eager")  # this op has no such backend
        if not candidates:
            names = ", ".join(b.name for b in backends)
            raise ValueError(f"{op}: {source} must be one of {names}, got {name!r}")
    else:
        candidates = [b for b in backends if not b.only_if_named]
    for backend in candidates:
        if backend.supports(value):
            if name is None and not torch.compiler.is_compiling():
                _warn_of_faster(candidates, backend, value.device.type)
            return backend
    failures = [f"{b.name}: {'; '.join(b.not_supported_reasons(value))}" for b in candidates]
    asked = f"; {source} asks for it" if name and source == ENVIRONMENT_VARIABLE else ""
    raise RuntimeError(f"{op}: no backend can run here ({' | '.join(failures)}){asked}")


def _warn_of_faster(candidates: Sequence[Backend], chosen: Backend, device: str) -> None:
    """Warn of each backend for this device that is faster than ``chosen`` and cannot run."""
    for backend in candidates:
        if backend is chosen:
            return
        if device in backend.devices and (reason := backend.unavailable_reason()):
            _warn_once(
                f"mmlocal runs its {chosen.name} backend on this {device}, which is several times "
                f"slower than {backend.name}: {reason}"
            )


@functools.cache
def _warn_once(message: str) -> None:
    # At the caller of the public function, however deep this is below it.
    frame, level = inspect.currentframe(), 1
    while frame and frame.f_globals.get("__name__", "").startswith("mmlocal.ops."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)

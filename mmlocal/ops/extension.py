"""The C++ kernels in ``_C.so`` as functions of tensors. ``build.py`` compiles them from ``csrc``.

The library does not know tensors. ``Extension.run`` checks shapes, dtypes and memory, fills a
structure of ``csrc/kernels.h`` and passes it through ``ctypes``. The structures of an op are in its
``cpp.py``. Maps are ``(B, H, W, C)`` with the channels innermost. The library uses the threads of
PyTorch's own OpenMP runtime. So there is one pool of threads, and ``torch.set_num_threads`` sets
its size.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Mapping
from ctypes import Structure, byref, c_char_p, c_int64, c_void_p
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mmlocal.ops import build

# Says how to get the kernels. The command is the same whatever the reason why they are missing.
MEND = "`mmlocal build` compiles them with the C++ compiler of this machine"

_CAPABILITIES = {"AVX2": 1, "AVX512": 2}
_NAMES = {torch.float32: "float", torch.float64: "double"}
_OPENMP = ("GOMP_parallel", "omp_in_parallel", "omp_get_thread_num", "omp_get_num_threads")


class Map(Structure):
    """``Map`` of ``kernels.h``. Samples, rows and pixels may have any strides."""

    _fields_ = [("data", c_void_p), ("b", c_int64), ("y", c_int64), ("x", c_int64)]

    dtype: torch.dtype | None = None  # None: the dtype of the call

    @classmethod
    def of(cls, x: Tensor, name: str) -> tuple[int, ...]:
        """Describe ``(B, H, W, C)``, or the first query of ``(B, queries, H, W, C)``.

        Returns:
            The members, from which ``ctypes`` makes the structure.
        """
        b, *_, y, pixel, channel = x.stride()
        if channel != 1 and x.shape[-1] > 1 and x.numel():
            raise RuntimeError(f"{name} must be channels-last, got strides {x.stride()}")
        return x.data_ptr(), b, y, pixel


class QueryMap(Map):
    """``QueryMap`` of ``kernels.h``."""

    _fields_ = [("query", c_int64)]

    @classmethod
    def of(cls, x: Tensor, name: str) -> tuple[int, ...]:
        """Describe ``(B, queries or 1, H, W, C)``."""
        return *super().of(x, name), x.stride(1) if x.shape[1] > 1 else 0


class Table(c_void_p):
    """The address of numbers that lie side by side."""

    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, x: Tensor, name: str) -> int:
        """Describe a tensor of any shape."""
        if not x.is_contiguous():
            raise RuntimeError(f"{name} must be contiguous, got strides {x.stride()}")
        return x.data_ptr()


class Flags(Table):
    """The address of bytes."""

    dtype = torch.uint8


class Counts(Table):
    """The address of whole numbers."""

    dtype = torch.int64


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    """Return entries of ``_fields_``: members of one kind. Blanks separate their names."""
    return [(name, kind) for name in names.split()]


class Arguments(Structure):
    """Base class of the structures that functions of the library take.

    An op mirrors its structures of ``kernels.h`` in its ``cpp.py``, under the same names.
    """

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors, by member. A vector has ``lanes`` numbers."""
        raise NotImplementedError(f"{type(self).__name__} must define shapes")


def round_up(count: int, lanes: int) -> int:
    """Return ``count``, rounded up to whole vectors of ``lanes`` numbers."""
    return count + -count % lanes


class Extension:
    """The functions of a loaded library.

    A call takes as long as a small map, so the answers that never change are kept.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._lanes = {
            dtype: getattr(library, f"mmlocal_lanes_{name}")() for dtype, name in _NAMES.items()
        }
        self._functions: dict[tuple, Callable] = {}

    def lanes(self, dtype: torch.dtype) -> int:
        """Return how many numbers a vector has. ``dtype`` is float32 or float64."""
        return self._lanes[dtype]

    def threads(self) -> int:
        """Return how many threads share a loop: PyTorch's number, or 1 without OpenMP."""
        return self._library.mmlocal_threads(c_int64(torch.get_num_threads()))

    def run(
        self,
        function: str,
        structure: type[Arguments],
        dtype: torch.dtype,
        **members: int | Tensor | None,
    ) -> Arguments:
        """Call a function of the library.

        Args:
            function: name of the function in ``csrc/library.cpp``.
            structure: the structure that the function takes.
            dtype: dtype of the tensors, float32 or float64.
            **members: members of the structure. ``csrc/kernels.h`` gives their shapes. A member
                that is ``None`` or left out is null.

        Returns:
            The structure, whose members the function may have set.

        Raises:
            RuntimeError: the function takes a structure of another size, a member is unknown, or a
                tensor does not have the shape, dtype, device or strides that the function needs.
        """
        counts: dict[str, Any] = {}
        tensors: dict[str, Tensor | None] = {}
        for name, x in members.items():
            if x is None or isinstance(x, Tensor):
                tensors[name] = x
            else:
                counts[name] = x
        return self.prepare(structure, dtype, **counts).run(function, **tensors)

    def prepare(
        self, structure: type[Arguments], dtype: torch.dtype, **counts: int
    ) -> PreparedCall:
        """Return a call without its tensors. It is kept for further calls with these counts.

        Args:
            structure: structure that the functions to call take.
            dtype: dtype of the tensors, float32 or float64.
            **counts: members of the structure that are not tensors.

        Raises:
            RuntimeError: a member is unknown.
        """
        return _prepare(self, structure, dtype, **counts)

    def function(self, name: str, structure: type[Arguments], dtype: torch.dtype) -> Callable:
        """Return a function of the library, once it is known to take the structure.

        Raises:
            RuntimeError: the function takes a structure of another size.
        """
        key = (name, structure, dtype)
        if key not in self._functions:
            size = getattr(self._library, f"mmlocal_size_of_{name}")()
            if size != ctypes.sizeof(structure):
                raise RuntimeError(
                    f"{name} takes a structure of {size} bytes, got {structure.__name__} of "
                    f"{ctypes.sizeof(structure)} bytes"
                )
            self._functions[key] = getattr(self._library, f"mmlocal_{name}_{_NAMES[dtype]}")
        return self._functions[key]


class PreparedCall:
    """A call without its tensors, and what is known about them. :meth:`Extension.prepare` makes it.

    Attributes:
        shapes: shapes of all tensors, by member.
    """

    def __init__(
        self,
        extension: Extension,
        structure: type[Arguments],
        dtype: torch.dtype,
        counts: Mapping[str, int],
    ) -> None:
        kinds: dict[str, Any] = {field[0]: field[1] for field in structure._fields_}
        if unknown := counts.keys() - kinds.keys():
            raise RuntimeError(f"{structure.__name__} has no members {sorted(unknown)}")
        self._extension, self._structure, self._dtype = extension, structure, dtype
        arguments = structure(**counts)
        self._bytes = bytes(arguments)
        self.shapes: Mapping[str, tuple[int, ...]] = MappingProxyType(
            arguments.shapes(extension.lanes(dtype))
        )
        self._tensors = {
            name: (kinds[name].of, kinds[name].dtype or dtype, shape)
            for name, shape in self.shapes.items()
        }

    def run(self, function: str, **tensors: Tensor | None) -> Arguments:
        """Call a function of the library. See :meth:`Extension.run`."""
        call = self._extension.function(function, self._structure, self._dtype)
        arguments = self._structure.from_buffer_copy(self._bytes)
        for name, x in tensors.items():
            if name not in self._tensors:
                raise RuntimeError(f"{self._structure.__name__} has no members {[name]}")
            if x is None:
                continue
            describe, dtype, shape = self._tensors[name]
            if x.dtype != dtype or not x.is_cpu:
                raise RuntimeError(
                    f"{name} must be {dtype} on the CPU, got {x.dtype} on {x.device}"
                )
            if x.shape != shape:
                raise RuntimeError(f"{name} must be {shape}, got {tuple(x.shape)}")
            setattr(arguments, name, describe(x, name))
        call(byref(arguments), c_int64(torch.get_num_threads()))
        return arguments


@functools.lru_cache(maxsize=1024)
def _prepare(
    extension: Extension, structure: type[Arguments], dtype: torch.dtype, **counts: int
) -> PreparedCall:
    return PreparedCall(extension, structure, dtype, counts)


def _openmp() -> ctypes.Array | None:
    """Return the functions of PyTorch's OpenMP runtime, or ``None`` if it has none."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"
    try:
        # The lookup includes the libraries that this one depends on.
        torch_cpu = ctypes.CDLL(str(path))
        functions = [ctypes.cast(getattr(torch_cpu, name), c_void_p).value for name in _OPENMP]
    except (OSError, AttributeError):
        return None
    return (c_void_p * len(_OPENMP))(*functions)


def _load(path: Path = build.LIBRARY) -> tuple[Extension | None, str | None]:
    """Return the extension and ``None``, or ``None`` and the reason why there is none."""
    if not path.is_file():
        return None, f"the C++ kernels are not compiled: {MEND}"
    try:
        library = ctypes.CDLL(str(path))
        library.mmlocal_digest.restype = c_char_p
        is_current = library.mmlocal_digest().decode() == build.digest()
        for name in ("lanes_float", "lanes_double", "threads"):
            getattr(library, f"mmlocal_{name}").restype = c_int64
    except (OSError, AttributeError) as error:
        return None, f"the C++ kernels do not load ({error}): {MEND}"
    if not is_current:
        return None, f"the C++ kernels are of another version of mmlocal: {MEND}"
    # ATEN_CPU_CAPABILITY changes the instruction set of PyTorch's kernels and of ours.
    capability = _CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), 0)
    library.mmlocal_init(c_int64(capability), _openmp())
    return Extension(library), None


# Loaded at import, because torch.compile must not meet the loading.
extension, unavailable_reason = _load()


def loaded() -> Extension:
    """Return the C++ kernels.

    Raises:
        RuntimeError: they are missing. The message says why.
    """
    if extension is None:
        raise RuntimeError(unavailable_reason)
    return extension

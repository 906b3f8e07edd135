"""The C++ kernels in ``_C.so`` as functions of tensors. ``build.py`` compiles them from ``csrc``.

The library does not know tensors. ``Extension.run`` checks shapes, dtypes and memory, fills a
structure of ``csrc/kernels.h`` and passes it through ``ctypes``. The structures of an op are in its
``cpp.py``. Maps are ``(B, H, W, C)`` with the channels innermost. The library uses the threads of
PyTorch's own OpenMP runtime. So there is one pool of threads, and ``torch.set_num_threads`` sets
its size.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import Structure, byref, c_char_p, c_int64, c_void_p
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmlocal.ops import build

# Says how to get the kernels. The command is the same whatever the reason why they are missing.
MEND = "`mmlocal build` compiles them with the C++ compiler of this machine"

_CAPABILITIES = {"AVX2": 1, "AVX512": 2}
_OPENMP = ("GOMP_parallel", "omp_in_parallel", "omp_get_thread_num", "omp_get_num_threads")


_AnyMap = TypeVar("_AnyMap", bound="Map")


class Map(Structure):
    """``Map`` of ``kernels.h``. Samples, rows and pixels may have any strides."""

    _fields_ = [("data", c_void_p), ("b", c_int64), ("y", c_int64), ("x", c_int64)]

    @classmethod
    def of(cls: type[_AnyMap], x: Tensor, name: str) -> _AnyMap:
        """Describe ``(B, H, W, C)``, or the first query of ``(B, queries, H, W, C)``."""
        b, *_, y, pixel, channel = x.stride()
        if channel != 1 and x.shape[-1] > 1 and x.numel():
            raise RuntimeError(f"{name} must be channels-last, got strides {x.stride()}")
        return cls(x.data_ptr(), b, y, pixel)


class QueryMap(Map):
    """``QueryMap`` of ``kernels.h``."""

    _fields_ = [("query", c_int64)]

    @classmethod
    def of(cls, x: Tensor, name: str) -> QueryMap:
        """Describe ``(B, queries or 1, H, W, C)``."""
        result = super().of(x, name)
        result.query = x.stride(1) if x.shape[1] > 1 else 0
        return result


class Table(c_void_p):
    """The address of numbers that lie side by side."""

    dtype: torch.dtype | None = None  # None: the dtype of the call

    @classmethod
    def of(cls, x: Tensor, name: str) -> Table:
        """Describe a tensor of any shape."""
        if not x.is_contiguous():
            raise RuntimeError(f"{name} must be contiguous, got strides {x.stride()}")
        return cls(x.data_ptr())


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
    """The functions of a loaded library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def lanes(self, dtype: torch.dtype) -> int:
        """Return how many numbers a vector has. ``dtype`` is float32 or float64."""
        return getattr(self._library, f"mmlocal_lanes_{_name(dtype)}")()

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
        size = getattr(self._library, f"mmlocal_size_of_{function}")()
        if size != ctypes.sizeof(structure):
            raise RuntimeError(
                f"{function} takes a structure of {size} bytes, got {structure.__name__} of "
                f"{ctypes.sizeof(structure)} bytes"
            )
        if unknown := members.keys() - {field[0] for field in structure._fields_}:
            raise RuntimeError(f"{structure.__name__} has no members {sorted(unknown)}")
        there = {name: x for name, x in members.items() if x is not None}
        tensors = {name: x for name, x in there.items() if isinstance(x, Tensor)}
        call = structure(**{name: there[name] for name in there.keys() - tensors.keys()})
        kinds: dict[str, Any] = {field[0]: field[1] for field in call._fields_}
        shapes = call.shapes(self.lanes(dtype))
        for name, x in tensors.items():
            expected = getattr(kinds[name], "dtype", None) or dtype
            if x.device.type != "cpu" or x.dtype != expected:
                raise RuntimeError(
                    f"{name} must be {expected} on the CPU, got {x.dtype} on {x.device}"
                )
            if x.shape != shapes[name]:
                raise RuntimeError(f"{name} must be {shapes[name]}, got {tuple(x.shape)}")
            setattr(call, name, kinds[name].of(x, name))
        threads = c_int64(torch.get_num_threads())
        getattr(self._library, f"mmlocal_{function}_{_name(dtype)}")(byref(call), threads)
        return call


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "float", torch.float64: "double"}[dtype]


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

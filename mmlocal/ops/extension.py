"""The C++ kernels in ``_C.so`` as functions of tensors. ``build.py`` compiles them from ``csrc``.

The library does not know tensors. ``Extension.run`` checks shapes, dtypes and memory, fills a
structure of ``csrc/kernels.h`` and passes it through ``ctypes``. Maps are ``(B, H, W, C)`` with the
channels innermost. The library uses the threads of PyTorch's own OpenMP runtime. So there is one
pool of threads, and ``torch.set_num_threads`` sets its size.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import Structure, byref, c_bool, c_char_p, c_int64, c_void_p
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmlocal.ops import build

# Says how to get the kernels. The command is the same whatever the reason why they are missing.
MEND = "`mmlocal build` compiles them with the C++ compiler of this machine"

_CAPABILITIES = {"AVX2": 1, "AVX512": 2}
_OPENMP = ("GOMP_parallel", "omp_in_parallel", "omp_get_thread_num", "omp_get_num_threads")


_AnyMap = TypeVar("_AnyMap", bound="_Map")


class _Map(Structure):
    """``Map`` of ``kernels.h``. Samples, rows and pixels may have any strides."""

    _fields_ = [("data", c_void_p), ("b", c_int64), ("y", c_int64), ("x", c_int64)]

    @classmethod
    def of(cls: type[_AnyMap], x: Tensor, name: str) -> _AnyMap:
        """Describe ``(B, H, W, C)``, or the first query of ``(B, queries, H, W, C)``."""
        b, *_, y, pixel, channel = x.stride()
        if channel != 1 and x.shape[-1] > 1 and x.numel():
            raise RuntimeError(f"{name} must be channels-last, got strides {x.stride()}")
        return cls(x.data_ptr(), b, y, pixel)


class _QueryMap(_Map):
    """``QueryMap`` of ``kernels.h``."""

    _fields_ = [("query", c_int64)]

    @classmethod
    def of(cls, x: Tensor, name: str) -> _QueryMap:
        """Describe ``(B, queries or 1, H, W, C)``."""
        result = super().of(x, name)
        result.query = x.stride(1) if x.shape[1] > 1 else 0
        return result


class _Table(c_void_p):
    """The address of numbers that lie side by side."""

    dtype: torch.dtype | None = None  # None: the dtype of the call

    @classmethod
    def of(cls, x: Tensor, name: str) -> _Table:
        if not x.is_contiguous():
            raise RuntimeError(f"{name} must be contiguous, got strides {x.stride()}")
        return cls(x.data_ptr())


class _Flags(_Table):
    """The address of bytes."""

    dtype = torch.uint8


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class _Elsa(Structure):
    """``Elsa`` of ``kernels.h``."""

    _fields_ = [
        *_fields(c_int64, "batch height width heads head_dims kernel dilation parts"),
        *_fields(c_bool, "softmax"),
        *_fields(_Map, "value attn grad"),
        *_fields(_Table, "mul add"),
        *_fields(_Map, "weights out grad_value grad_attn"),
        *_fields(_Table, "sum_mul sum_add"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        pixels, taps = (self.batch, self.height, self.width), self.kernel**2
        channels = round_up(self.heads * self.head_dims, lanes)
        table = (taps, channels)
        return (
            dict.fromkeys(("value", "grad", "out", "grad_value"), (*pixels, channels))
            | dict.fromkeys(("attn", "weights", "grad_attn"), (*pixels, self.heads * taps))
            | dict.fromkeys(("mul", "add"), table)
            | dict.fromkeys(("sum_mul", "sum_add"), (self.parts, *table))
        )


class _QnaPeak(Structure):
    """``QnaPeak`` of ``kernels.h``."""

    _fields_ = [
        *_fields(c_int64, "batch height width tables parts"),
        *_fields(_Map, "scores"),
        *_fields(_Table, "peak"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        return {
            "scores": (self.batch, self.height, self.width, self.tables),
            "peak": (self.batch, self.parts, round_up(self.tables, lanes)),
        }


class _Qna(Structure):
    """``Qna`` of ``kernels.h``."""

    _fields_ = [
        *_fields(c_int64, "batch channels height width out_height out_width"),
        *_fields(c_int64, "queries heads kernel stride padding parts"),
        *_fields(c_bool, "sum_queries"),
        *_fields(_Map, "value scores"),
        *_fields(_QueryMap, "grad"),
        *_fields(_Table, "shift power rel mix rel_pos tap_weight"),
        *_fields(_QueryMap, "out"),
        *_fields(_Map, "inverse mean"),
        *_fields(_Flags, "exact exact_rows"),
        *_fields(_Map, "grad_value grad_scores"),
        *_fields(_Table, "sum_rel sum_mix sum_exact_rel sum_exact_mix"),
    ]

    def shapes(self, lanes: int) -> dict[str, tuple[int, ...]]:
        tokens = (self.batch, self.height, self.width)
        windows = (self.batch, self.out_height, self.out_width)
        outputs = (self.batch, 1 if self.sum_queries else self.queries, *windows[1:], self.channels)
        taps, tables = self.kernel**2, self.queries * self.heads
        padded = round_up(tables, lanes)
        rel = (taps, padded)
        mix = (taps, round_up(self.channels, lanes) // lanes, self.queries, lanes)
        return (
            dict.fromkeys(("value", "grad_value"), (*tokens, self.channels))
            | dict.fromkeys(("scores", "grad_scores"), (*tokens, tables))
            | dict.fromkeys(("grad", "out"), outputs)
            | dict.fromkeys(("inverse", "mean"), (*windows, padded))
            | dict.fromkeys(("shift", "power"), (self.batch, padded))
            | dict.fromkeys(("rel_pos", "tap_weight"), (tables, taps))
            | dict.fromkeys(("sum_exact_rel", "sum_exact_mix"), (self.parts, tables, taps))
            | {"exact": (*windows, tables), "exact_rows": windows[:2]}
            | {"rel": rel, "sum_rel": (self.parts, *rel)}
            | {"mix": mix, "sum_mix": (self.parts, *mix)}
        )


# The functions of the library, and the structure that each of them takes.
_FUNCTIONS = {
    "elsa_forward": _Elsa,
    "elsa_backward": _Elsa,
    "qna_peak": _QnaPeak,
    "qna_forward": _Qna,
    "qna_backward": _Qna,
}


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

    def run(self, function: str, dtype: torch.dtype, **arguments: int | Tensor | None) -> None:
        """Call a function of the library.

        Args:
            function: name of the function in ``csrc/library.cpp``.
            dtype: dtype of the tensors, float32 or float64.
            **arguments: members of the function's structure. ``csrc/kernels.h`` gives their shapes.
                A member that is ``None`` or left out is null.

        Raises:
            RuntimeError: a tensor does not have the shape, dtype, device or strides that the
                function needs.
        """
        call = _FUNCTIONS[function]()
        kinds: dict[str, Any] = {field[0]: field[1] for field in call._fields_}
        tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
        for name in arguments.keys() - tensors.keys():
            if arguments[name] is not None:
                setattr(call, name, kinds[name](arguments[name]))
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
        is_current = library.mmlocal_digest().decode() == build.digest() and all(
            getattr(library, f"mmlocal_size_of_{name}")() == ctypes.sizeof(structure)
            for name, structure in _FUNCTIONS.items()
        )
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

"""The C++ kernels, ``_C.so``, as functions of tensors. ``build.py`` compiles them from ``csrc``.

The library knows no tensors: the functions here check shapes, dtypes and memory, fill the
structures of ``csrc/kernels.h``, and call it through ``ctypes``. Maps come as ``(B, H, W, C)`` with
the channels innermost. The library computes with the threads of PyTorch's own OpenMP runtime, so
there is one pool of threads, and ``torch.set_num_threads`` counts.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import Structure, byref, c_bool, c_char_p, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from mmlocal.ops import build

# How to get the kernels; one command for every reason why they are not there.
MEND = "`mmlocal build` compiles them with the C++ compiler of this machine"

_CAPABILITIES = {"AVX2": 1, "AVX512": 2}
_OPENMP = ("GOMP_parallel", "omp_in_parallel", "omp_get_thread_num", "omp_get_num_threads")


class _Map(Structure):
    """``Map`` of ``kernels.h``."""

    _fields_ = [("data", c_void_p)] + [(name, c_int64) for name in "byx"]


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class _Elsa(Structure):
    """``Elsa`` of ``kernels.h``."""

    _fields_ = [
        *_fields(c_int64, "batch height width heads vectors kernel dilation"),
        *_fields(c_bool, "softmax"),
        *_fields(_Map, "value attn grad"),
        *_fields(c_void_p, "mul add"),
        *_fields(_Map, "weights out grad_value grad_attn"),
    ]


class _Qna(Structure):
    """``Qna`` of ``kernels.h``."""

    _fields_ = [
        *_fields(c_int64, "batch channels height width out_height out_width"),
        *_fields(c_int64, "queries heads kernel stride padding"),
        *_fields(c_bool, "sum_queries need_tables need_value need_scores"),
        *_fields(_Map, "value scores grad"),
        *_fields(c_int64, "grad_query out_query"),
        *_fields(c_void_p, "shift power rel mix rel_pos tap_weight"),
        *_fields(_Map, "out inverse mean"),
        *_fields(c_void_p, "exact"),
        *_fields(_Map, "grad_value grad_scores"),
        *_fields(c_void_p, "sum_mix sum_rel sum_exact_mix sum_exact_rel"),
    ]


def _pointer(x: Tensor, name: str, dtype: torch.dtype) -> int:
    if x.device.type != "cpu" or x.dtype != dtype:
        raise RuntimeError(f"{name} must be {dtype} on the CPU, got {x.dtype} on {x.device}")
    return x.data_ptr()


def _map(x: Tensor | None, name: str, dtype: torch.dtype, shape: Sequence[int]) -> _Map:
    """A map ``(B, H, W, C)``; an empty one for ``None``."""
    if x is None:
        return _Map()
    if x.shape != torch.Size(shape):
        raise RuntimeError(f"{name} has shape {tuple(x.shape)}, expected {tuple(shape)}")
    b, y, x_stride, channel = x.stride()
    if channel != 1 and x.shape[3] > 1 and x.numel():
        raise RuntimeError(f"{name} must be channels-last, got strides {x.stride()}")
    return _Map(_pointer(x, name, dtype), b, y, x_stride)


def _table(x: Tensor | None, name: str, dtype: torch.dtype, size: int) -> int | None:
    """A contiguous tensor of at least ``size`` numbers."""
    if x is None:
        return None
    if not x.is_contiguous() or x.numel() < size:
        raise RuntimeError(
            f"{name} must be contiguous, of {size} numbers, got {tuple(x.shape)}, "
            f"strides {x.stride()}"
        )
    return _pointer(x, name, dtype)


class Extension:
    """The functions of a library that is loaded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def _call(self, name: str, dtype: torch.dtype, *arguments: object) -> None:
        suffix = "double" if dtype == torch.float64 else "float"
        threads = c_int64(torch.get_num_threads())
        getattr(self._library, f"mmlocal_{name}_{suffix}")(*arguments, threads)

    def lanes(self, is_double: bool) -> int:
        """How many numbers a vector has."""
        return getattr(self._library, f"mmlocal_lanes_{'double' if is_double else 'float'}")()

    def threads(self) -> int:
        """How many threads share a loop: those of PyTorch, or 1 if it has no OpenMP runtime."""
        return self._library.mmlocal_threads(c_int64(torch.get_num_threads()))

    def _elsa(
        self,
        value: Tensor,
        attn: Tensor,
        mul: Tensor | None,
        add: Tensor | None,
        kernel: int,
        dilation: int,
        softmax: bool,
    ) -> _Elsa:
        dtype, taps = value.dtype, kernel * kernel
        batch, height, width, channels = value.shape
        heads = attn.shape[3] // taps
        vectors, rest = divmod(channels, heads * self.lanes(dtype == torch.float64))
        if rest:
            raise RuntimeError("the channels of a head must fill whole vectors")
        shape = (batch, height, width, heads * taps)
        return _Elsa(
            *(batch, height, width, heads, vectors, kernel, dilation, softmax),
            value=_map(value, "value", dtype, value.shape),
            attn=_map(attn, "attn", dtype, shape),
            mul=_table(mul, "mul", dtype, taps * channels),
            add=_table(add, "add", dtype, taps * channels),
        )

    def elsa_forward(
        self,
        value: Tensor,
        attn: Tensor,
        mul: Tensor | None,
        add: Tensor | None,
        kernel: int,
        dilation: int,
        softmax: bool,
        out: Tensor,
    ) -> None:
        """The channels of each head fill whole vectors; ``mul``, ``add``: ``(taps, channels)``."""
        a = self._elsa(value, attn, mul, add, kernel, dilation, softmax)
        a.out = _map(out, "out", value.dtype, value.shape)
        self._call("elsa_forward", value.dtype, byref(a))

    def elsa_backward(
        self,
        grad: Tensor,
        value: Tensor,
        attn: Tensor,
        mul: Tensor | None,
        add: Tensor | None,
        kernel: int,
        dilation: int,
        softmax: bool,
        weights: Tensor,
        grad_value: Tensor | None,
        grad_attn: Tensor | None,
        sum_mul: Tensor | None,
        sum_add: Tensor | None,
    ) -> None:
        """``weights``: room for the softmax of ``attn``, which may be its own; ``attn`` itself if
        there is none to take. ``grad_attn`` may be the room of the softmax. Sums of the ghost
        heads: ``(parts, taps, channels)``, zero. ``None`` where not needed."""
        dtype = value.dtype
        a = self._elsa(value, attn, mul, add, kernel, dilation, softmax)
        a.grad = _map(grad, "grad", dtype, value.shape)
        a.weights = _map(weights, "weights", dtype, attn.shape)
        a.grad_value = _map(grad_value, "grad_value", dtype, value.shape)
        a.grad_attn = _map(grad_attn, "grad_attn", dtype, attn.shape)
        parts = next((x.shape[0] for x in (sum_mul, sum_add) if x is not None), 0)
        size = parts * kernel * kernel * value.shape[3]
        sums = [
            c_void_p(_table(x, name, dtype, size))
            for x, name in ((sum_mul, "sum_mul"), (sum_add, "sum_add"))
        ]
        self._call("elsa_backward", dtype, byref(a), *sums, c_int64(parts))

    def qna_peak(self, scores: Tensor, peak: Tensor) -> None:
        """``peak``: ``(B, parts, padded tables)``, -inf, gets the largest score of each table in
        each part of the rows."""
        batch, height, width, tables = scores.shape
        a = _Qna(batch=batch, height=height, width=width, queries=1, heads=tables)
        a.scores = _map(scores, "scores", scores.dtype, scores.shape)
        parts = peak.shape[1]
        lanes = self.lanes(scores.dtype == torch.float64)
        size = batch * parts * (tables + -tables % lanes)
        pointer = c_void_p(_table(peak, "peak", scores.dtype, size))
        self._call("qna_peak", scores.dtype, byref(a), pointer, c_int64(parts))

    def QnaInputs(  # noqa: N802 - a structure
        self,
        value: Tensor,
        scores: Tensor,
        shift: Tensor,
        power: Tensor,
        rel: Tensor,
        mix: Tensor,
        rel_pos: Tensor | None,
        tap_weight: Tensor | None,
        queries: int,
        kernel: int,
        stride: int,
        padding: int,
        out_height: int,
        out_width: int,
    ) -> _QnaInputs:
        """Shared arguments of the forward and backward pass of a call; see ``csrc/kernels.h``."""
        lanes = self.lanes(value.dtype == torch.float64)
        batch, height, width, channels = value.shape
        taps, tables, dtype = kernel * kernel, scores.shape[3], value.dtype
        padded, mixed = tables + -tables % lanes, (channels + -channels % lanes) * queries
        a = _Qna(
            *(batch, channels, height, width, out_height, out_width),
            *(queries, tables // queries, kernel, stride, padding),
            value=_map(value, "value", dtype, value.shape),
            scores=_map(scores, "scores", dtype, (batch, height, width, tables)),
            shift=_table(shift, "shift", dtype, batch * padded),
            power=_table(power, "power", dtype, batch * padded),
            rel=_table(rel, "rel", dtype, taps * padded),
            mix=_table(mix, "mix", dtype, taps * mixed),
            rel_pos=_table(rel_pos, "rel_pos", dtype, tables * taps),
            tap_weight=_table(tap_weight, "tap_weight", dtype, tables * taps),
        )
        # The structure holds addresses only: keep what lies there.
        owners = (value, scores, shift, power, rel, mix, rel_pos, tap_weight)
        return _QnaInputs(a, dtype, padded, mixed, owners)

    def qna_forward(self, inputs: _QnaInputs, sum_queries: bool, out: Tensor) -> None:
        """``out``: ``(B, queries or 1, H, W, C)``."""
        a = inputs.call
        a.sum_queries = sum_queries
        a.out = inputs.output_map(out, "out")
        a.out_query = 0 if sum_queries else out.stride(1)
        self._call("qna_forward", inputs.dtype, byref(a))

    def qna_backward(
        self,
        grad: Tensor,
        inputs: _QnaInputs,
        sum_queries: bool,
        inverse: Tensor,
        mean: Tensor,
        exact: Tensor,
        sums: Sequence[Tensor] | None,
        grad_value: Tensor | None,
        grad_scores: Tensor | None,
    ) -> None:
        """``inverse``, ``mean``: ``(B, H_out, W_out, padded tables)``, the first with room for a
        vector behind it. ``exact``: ``(B, H_out)`` bytes, zero. ``sums``: see ``Qna`` in
        ``csrc/kernels.h``, zero; ``None`` if no table needs a gradient."""
        a, dtype, padded = inputs.call, inputs.dtype, inputs.padded
        a.sum_queries = sum_queries
        a.grad = inputs.output_map(grad, "grad")
        a.grad_query = 0 if sum_queries else grad.stride(1)
        windows = a.batch * a.out_height * a.out_width

        def over_windows(x: Tensor, name: str, extra: int) -> _Map:
            pointer = _table(x, name, dtype, windows * padded + extra)
            return _Map(pointer, a.out_height * a.out_width * padded, a.out_width * padded, padded)

        a.inverse = over_windows(inverse, "inverse", self.lanes(dtype == torch.float64))
        a.mean = over_windows(mean, "mean", 0)
        a.exact = _table(exact, "exact", torch.uint8, a.batch * a.out_height)
        shape = (a.batch, a.height, a.width)
        a.grad_value = _map(grad_value, "grad_value", dtype, (*shape, a.channels))
        a.grad_scores = _map(grad_scores, "grad_scores", dtype, (*shape, a.queries * a.heads))
        a.need_tables = sums is not None
        a.need_value = grad_value is not None
        a.need_scores = grad_scores is not None
        parts = 0
        if sums is not None:
            parts, taps = sums[0].shape[0], a.kernel * a.kernel
            exact_size = a.queries * a.heads * taps
            sizes = (taps * inputs.mixed, taps * padded, exact_size, exact_size)
            names = ("sum_mix", "sum_rel", "sum_exact_mix", "sum_exact_rel")
            for name, size, x in zip(names, sizes, sums, strict=True):
                setattr(a, name, _table(x, name, dtype, parts * size))
        self._call("qna_backward", dtype, byref(a), c_int64(parts))


class _QnaInputs:
    """The structure of a call, and what its sizes follow from."""

    def __init__(
        self, call: _Qna, dtype: torch.dtype, padded: int, mixed: int, owners: tuple
    ) -> None:
        self.call = call
        self.dtype = dtype
        self.padded = padded  # tables, to whole vectors
        self.mixed = mixed  # channels, to whole vectors, of all queries
        self._owners = owners

    def output_map(self, x: Tensor, name: str) -> _Map:
        """Of the output or its gradient, ``(B, queries or 1, H, W, C)``: the map of a query."""
        a = self.call
        queries = 1 if a.sum_queries else a.queries
        if x.dim() != 5 or x.shape[1] != queries:
            raise RuntimeError(f"{name} has shape {tuple(x.shape)}, expected {queries} queries")
        return _map(
            x.select(1, 0), name, self.dtype, (a.batch, a.out_height, a.out_width, a.channels)
        )


def _openmp() -> ctypes.Array | None:
    """The functions of the OpenMP runtime that PyTorch is linked to; ``None`` if there is none."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"
    try:
        # The lookup goes through what the library depends on.
        torch_cpu = ctypes.CDLL(str(path))
        functions = [ctypes.cast(getattr(torch_cpu, name), c_void_p).value for name in _OPENMP]
    except (OSError, AttributeError):
        return None
    return (c_void_p * len(_OPENMP))(*functions)


def _load(path: Path = build.LIBRARY) -> tuple[Extension | None, str | None]:
    """The extension, or ``None``, and why there is none."""
    if not path.is_file():
        return None, f"the C++ kernels are not compiled: {MEND}"
    try:
        library = ctypes.CDLL(str(path))
        library.mmlocal_digest.restype = c_char_p
        built_from = library.mmlocal_digest().decode()
        sizes = library.mmlocal_size_of_elsa(), library.mmlocal_size_of_qna()
        for name in ("lanes_float", "lanes_double", "threads"):
            getattr(library, f"mmlocal_{name}").restype = c_int64
        sources = build.digest()
    except (OSError, AttributeError) as error:
        return None, f"the C++ kernels do not load ({error}): {MEND}"
    if built_from != sources or sizes != (ctypes.sizeof(_Elsa), ctypes.sizeof(_Qna)):
        return None, f"the C++ kernels are of another version of mmlocal: {MEND}"
    # ATEN_CPU_CAPABILITY changes the instruction set of PyTorch's kernels and of ours.
    capability = _CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), 0)
    library.mmlocal_init(c_int64(capability), _openmp())
    return Extension(library), None


# At import: torch.compile must not meet it.
extension, unavailable_reason = _load()

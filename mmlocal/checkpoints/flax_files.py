"""Checkpoint files of Flax, in MessagePack, read without JAX or Flax and without executing code."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Flax's extension types of MessagePack.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    )
}
# Parameters and statistics of a layer: Flax's name -> PyTorch's name.
LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Any model here with its optimizer is far smaller. A file that claims more would fill the memory.
_MAX_BYTES = 1 << 34
_MAX_ENTRIES = 1 << 16
_MAX_DIMS = 32


class _BadArrayError(ValueError):
    """The parts of an array contradict each other."""


def find_flax(path: Path) -> Path:
    """Find the checkpoint file that a path names.

    Args:
        path: a file, or a folder of files ``checkpoint_<step>``.

    Returns:
        ``path`` itself, or the file of the highest step in the folder ``path``.

    Raises:
        FileNotFoundError: the folder does not hold such files.
    """
    if not path.is_dir():
        return path
    files = {
        int(match[1]): file
        for file in path.iterdir()
        if (match := re.fullmatch(r"checkpoint_([0-9]+)", file.name)) and file.is_file()
    }
    if not files:
        raise FileNotFoundError(
            f"folder {path} holds no file checkpoint_<step>; the folders of Orbax, which newer "
            "versions of Flax write, cannot be read"
        )
    return files[max(files)]


def load_flax(path: str | Path) -> dict:
    """Read a checkpoint written by ``flax.training.checkpoints`` or ``flax.serialization``.

    Args:
        path: a local file.

    Returns:
        The nested dict in the file. Arrays and NumPy numbers are tensors of the same dtype.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: ``msgpack`` is not installed.
        ValueError: the file is damaged, too large or of another kind.
    """
    try:
        import msgpack
    except ImportError as error:
        raise ImportError("checkpoints of Flax need msgpack: pip install msgpack") from error

    def decode(code: int, data: bytes) -> object:
        if code in (_ARRAY, _SCALAR):
            return _array(*msgpack.unpackb(data, raw=True))
        return complex(*msgpack.unpackb(data)) if code == _COMPLEX else msgpack.ExtType(code, data)

    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"checkpoint {path} is larger than {_MAX_BYTES >> 30} GiB")
    try:
        checkpoint = msgpack.unpackb(
            path.read_bytes(),
            ext_hook=decode,
            object_hook=_join_chunks,
            raw=False,
            strict_map_key=False,
            max_array_len=_MAX_ENTRIES,
            max_map_len=_MAX_ENTRIES,
        )
    except OSError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        reason = f": {error}" if isinstance(error, _BadArrayError) else ", or not written by Flax"
        raise ValueError(f"checkpoint {path} cannot be read: it is damaged{reason}") from error
    if not isinstance(checkpoint, dict):
        kind = type(checkpoint).__name__
        raise ValueError(f"checkpoint {path} must hold a map, as Flax writes it, got {kind}")
    return checkpoint


def flatten(tree: object) -> dict[str, Any]:
    """Flatten nested maps.

    Args:
        tree: maps in maps, with any leaves.

    Returns:
        The leaves, under their names joined by ``/``.

    Raises:
        ValueError: a name is not a string, or holds a ``/``.
    """
    return dict(_leaves(tree, ""))


def _leaves(tree: object, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        yield prefix.removesuffix("/"), tree
        return
    for key, value in tree.items():
        if not isinstance(key, str) or "/" in key:
            raise ValueError(f"{key!r} in {prefix or 'it'} is not the name of a parameter")
        yield from _leaves(value, f"{prefix}{key}/")


def to_pytorch(leaf: str, value: Tensor) -> Tensor:
    """Bring a parameter into PyTorch's order of axes.

    Args:
        leaf: Flax's name of the parameter in its layer. A ``kernel`` has its output channels last.
        value: the parameter.

    Returns:
        A view of ``value`` with output channels first for a ``kernel``, else ``value`` itself.
    """
    if leaf != "kernel":
        return value
    return value.t() if value.dim() == 2 else value.permute(3, 2, 0, 1)


def _array(shape: list[int], dtype: bytes, data: bytes) -> Tensor:
    count, name = _count(shape), dtype.decode()
    if name not in _DTYPES:
        raise _BadArrayError(f"an array has the unknown dtype {name[:20]!r}")
    size = count * _DTYPES[name].itemsize
    if len(data) != size:
        raise _BadArrayError(
            f"an array of shape {tuple(shape)} and dtype {name} needs {size} bytes, got {len(data)}"
        )
    if not data:
        return torch.empty(shape, dtype=_DTYPES[name])
    # PyTorch warns about a buffer that it cannot write to, so it gets a bytearray.
    return torch.frombuffer(bytearray(data), dtype=_DTYPES[name]).reshape(shape)


def _join_chunks(entry: dict) -> dict | Tensor:
    """Join an array that Flax cut into chunks, because it has more than 2**30 bytes."""
    if _CHUNKED not in entry:
        return entry
    shape, chunks = (
        [entry[part][str(i)] for i in range(len(entry[part]))] for part in ("shape", "chunks")
    )
    flat = torch.cat(chunks)
    if _count(shape) != flat.numel():
        raise _BadArrayError(
            f"an array of shape {tuple(shape)} is cut into chunks of {flat.numel()} numbers"
        )
    return flat.reshape(shape)


def _count(shape: list[int]) -> int:
    """Count the numbers of an array."""
    if len(shape) > _MAX_DIMS or not all(type(size) is int and size >= 0 for size in shape):
        raise _BadArrayError("an array has an impossible shape")
    return math.prod(shape)

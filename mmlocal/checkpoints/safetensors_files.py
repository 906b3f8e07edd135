"""Files of safetensors, which hold tensors and strings, and never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Key of the file's metadata that holds ``meta`` of a checkpoint, as JSON.
_META = "meta"


def is_safetensors(path: Path) -> bool:
    """Whether a file has the suffix or the beginning of a file of safetensors.

    Args:
        path: a path. If no file is there, its suffix counts.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        return path.suffix == ".safetensors"
    with open(path, "rb") as file:  # the length of a JSON object, then the object
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= path.stat().st_size


def load_safetensors(path: Path, map_location: Any = "cpu") -> dict:
    """Read a file of safetensors.

    Args:
        path: a file that exists.
        map_location: device for the tensors, a name or a :class:`torch.device`. Anything else that
            :func:`torch.load` takes stands for the CPU.

    Returns:
        A dict with ``state_dict``, the tensors by name, and ``meta``, as :func:`pack_safetensors`
        stored it. ``meta`` is empty in a file of another program.

    Raises:
        ImportError: the package safetensors is not installed.
        ValueError: the file is damaged.
    """
    safetensors = _package(path)
    device = str(map_location) if isinstance(map_location, (str, torch.device)) else "cpu"
    try:
        with safetensors.safe_open(str(path), framework="pt", device=device) as file:
            stored = (file.metadata() or {}).get(_META, "{}")
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # errors of the package derive from Exception
        raise ValueError(
            f"checkpoint {path} cannot be read safely: it is damaged, or was not written by "
            "safetensors"
        ) from error
    try:
        meta = json.loads(stored)
    except ValueError:
        meta = {}  # the entry of another program
    return {"meta": meta if isinstance(meta, dict) else {}, "state_dict": state_dict}


def pack_safetensors(state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """Make the content of a file of safetensors.

    Args:
        state_dict: tensors by name.
        meta: plain values. The file stores them as one JSON string, so tuples become lists. Tensors
            and bytes are left out.

    Returns:
        The content. Equal arguments give equal bytes.

    Raises:
        ImportError: the package safetensors is not installed.
        ValueError: an entry of ``state_dict`` is no dense tensor.
    """
    _package()
    from safetensors.torch import save

    tensors = {}
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise ValueError(f"safetensors holds tensors with names, and {name!r} is no text")
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ValueError(f"safetensors holds dense tensors only, {name} is {value!r:.60}")
        # The format knows no strides and no tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    # One entry only, because the package may write several in any order.
    return save(tensors, {_META: json.dumps(_json_entries(meta), ensure_ascii=False)})


def _json_entries(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a dict, and of the dicts in it, that JSON can hold."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            kept[key] = _json_entries(value)
        elif _is_json(value):
            kept[key] = value
    return kept


def _is_json(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (str, int, float))


def _package(path: Path | None = None) -> Any:
    try:
        import safetensors
    except ImportError as error:
        what = f"checkpoint {path}" if path else "a .safetensors file"
        raise ImportError(
            f"{what} needs the package safetensors: pip install safetensors"
        ) from error
    return safetensors

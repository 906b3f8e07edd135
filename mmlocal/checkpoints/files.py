"""Checkpoint files, read without executing code and written whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from mmlocal.checkpoints.safetensors_files import (
    is_safetensors,
    load_safetensors,
    pack_safetensors,
)
from mmlocal.files import write_whole

# Suffixes of checkpoints that mmlocal writes.
SUFFIXES = (".pth", ".safetensors")


class _StandIn:
    """Empty object that replaces one stored next to the weights."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# MMEngine's training runs store NumPy numbers, and loss histories with bound methods, next to the
# weights. A converter needs none of them. A file must not call the real objects: with the real
# `getattr`, it could reach every module of this process.
_STAND_INS = [
    type(name, (_StandIn,), {"__module__": module})
    for module, name in (
        ("builtins", "getattr"),
        ("builtins", "slice"),
        ("mmengine.logging.history_buffer", "HistoryBuffer"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
    )
]


def find_file(path: str | Path) -> Path:
    """Find the checkpoint file that a path names.

    Args:
        path: a file, or a folder. In the folder of a training run, the file is the run's last
            checkpoint. Any other folder must hold exactly one ``.safetensors``, ``.pth`` or ``.pt``
            file.

    Returns:
        The file in the folder, or ``path`` itself if it is not a folder.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the folder holds several checkpoints.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    pointer = path / "last_checkpoint"  # MMEngine writes the path at the time of the run
    if pointer.is_file():
        last = path / Path(pointer.read_text().strip()).name
        if last.is_file():
            return last
    suffixes = (*SUFFIXES, ".pt")
    found = sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file())
    if not found:
        raise FileNotFoundError(f"folder {path} holds no {', '.join(suffixes[:-1])} or .pt file")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"folder {path} holds {len(found)} checkpoints, name one: {names}")
    return found[0]


def load_file(path: str | Path, map_location: Any = "cpu") -> dict:
    """Read a checkpoint written by PyTorch, timm's trainers, MMCV, MMEngine or safetensors.

    Args:
        path: a local file, or a folder as for :func:`~mmlocal.checkpoints.find_file`.
        map_location: device for the tensors, as :func:`torch.load` takes it.

    Returns:
        The dict in the file. Empty objects replace NumPy arrays and numbers, and MMEngine's loss
        histories. A file of safetensors gives the entries ``meta`` and ``state_dict``.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: the file is one of safetensors, and this package is not installed.
        ValueError: the file is damaged, holds objects other than tensors and plain data, or does
            not hold a dict.
    """
    path = find_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if is_safetensors(path):
        return load_safetensors(path, map_location)
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace, *_STAND_INS]),
        ):
            warnings.simplefilter("ignore")  # the error says the same
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"checkpoint {path} cannot be read safely: {_reason(error)}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"checkpoint {path} must hold a dict, got {type(checkpoint).__name__}")
    return checkpoint


def weights_of(checkpoint: dict, path: str | Path) -> dict[str, Any]:
    """Find the weights in the content of a checkpoint.

    Args:
        checkpoint: result of :func:`load_file`.
        path: path of the file, for the error.

    Returns:
        The entry ``state_dict``, or the whole content if there is none.

    Raises:
        ValueError: ``state_dict`` is no dict.
    """
    weights = checkpoint.get("state_dict", checkpoint)
    if not isinstance(weights, dict):
        found = type(weights).__name__
        raise ValueError(f"checkpoint {path} has a state_dict without weights, a {found}")
    return weights


def meta_of(checkpoint: dict) -> dict:
    """Find the entry ``meta`` in the content of a checkpoint; an empty dict if it is none.

    Args:
        checkpoint: result of :func:`load_file`.
    """
    meta = checkpoint.get("meta")
    return meta if isinstance(meta, dict) else {}


def _reason(error: Exception) -> str:
    """Shorten PyTorch's reason to one line, without its advice to turn safety off."""
    text = str(error).strip()
    if match := re.search(r"GLOBAL (\S+)", text):
        return f"it refers to {match[1]}, which is neither a tensor nor plain data"
    if isinstance(error, PermissionError) or "TorchScript" in text:
        return text.splitlines()[0]
    return "it is damaged, or was not written by PyTorch"


def save_file(checkpoint: dict, folder: str | Path, stem: str, suffix: str = ".pth") -> Path:
    """Write a checkpoint to ``<stem>-<first 8 hex digits of the file's SHA-256><suffix>``.

    Equal checkpoints give equal files, so a second write changes nothing. The file appears under
    its name only when it is complete.

    Args:
        checkpoint: tensors and plain data. For safetensors, ``meta`` and ``state_dict``.
        folder: folder of the file. It is created if it does not exist.
        stem: name of the file up to the hash.
        suffix: ``".pth"`` for a file of PyTorch, ``".safetensors"`` for one of safetensors.

    Returns:
        Path of the file.

    Raises:
        ImportError: the package safetensors is missing.
        OSError: the folder or file cannot be written.
        ValueError: safetensors cannot hold an entry of ``state_dict``.
    """
    content: bytes | memoryview
    if suffix == ".safetensors":
        content = pack_safetensors(checkpoint["state_dict"], checkpoint["meta"])
    else:
        # Write to memory first, because PyTorch stores the name of the file in the file.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
    path = Path(folder) / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path


def name_output(source: Path, out: Path, suffix: str | None = None) -> tuple[Path, str, str]:
    """Choose the folder, stem and suffix of a new file, for :func:`save_file`.

    Args:
        source: the checkpoint that is converted. It gives the stem if ``out`` is a folder.
        out: a folder, or a file name that ends in ``.pth`` or ``.safetensors``.
        suffix: suffix that the file must have. ``None`` for the suffix of ``out``, or ``.pth`` if
            ``out`` is a folder.

    Returns:
        Folder, stem and suffix.

    Raises:
        ValueError: ``out`` has another suffix.
    """
    if out.is_dir() or not out.suffix:
        stem = re.sub(r"(\.safetensors|\.pth|\.pt)?(\.tar)?$", "", source.name)
        return out, stem, suffix or SUFFIXES[0]
    allowed = SUFFIXES if suffix is None else (suffix,)
    if out.suffix not in allowed:
        raise ValueError(f"the output must be a folder or end in {' or '.join(allowed)}, got {out}")
    return out.parent, out.stem, out.suffix


def sha256_of(path: str | Path) -> str:
    """Compute the SHA-256 of a file, in hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

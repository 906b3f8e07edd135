"""Checkpoint files, read without executing code and written whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import warnings
from pathlib import Path

import torch

from mmlocal.files import write_whole


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


def load_file(path: str | Path, map_location: str = "cpu") -> dict:
    """Read a checkpoint written by PyTorch, timm's trainers, MMCV or MMEngine.

    Args:
        path: a local file.
        map_location: device for the tensors, as :func:`torch.load` takes it.

    Returns:
        The dict in the file. Empty objects replace NumPy arrays and numbers, and MMEngine's loss
        histories.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, holds objects other than tensors and plain data, or does
            not hold a dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
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


def _reason(error: Exception) -> str:
    """Shorten PyTorch's reason to one line, without its advice to turn safety off."""
    text = str(error).strip()
    if match := re.search(r"GLOBAL (\S+)", text):
        return f"it refers to {match[1]}, which is neither a tensor nor plain data"
    if isinstance(error, PermissionError) or "TorchScript" in text:
        return text.splitlines()[0]
    return "it is damaged, or was not written by PyTorch"


def save_file(checkpoint: dict, folder: str | Path, stem: str) -> Path:
    """Write a checkpoint to ``<stem>-<first 8 hex digits of the file's SHA-256>.pth``.

    Equal checkpoints give equal files, so a second write changes nothing. The file appears under
    its name only when it is complete.

    Args:
        checkpoint: tensors and plain data.
        folder: folder of the file. It is created if it does not exist.
        stem: name of the file up to the hash.

    Returns:
        Path of the file.

    Raises:
        OSError: the folder or file cannot be written.
    """
    # Write to memory first, because PyTorch stores the name of the file in the file.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getbuffer()
    path = Path(folder) / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path


def name_output(source: Path, out: Path) -> tuple[Path, str]:
    """Choose the folder and stem of a converted file, for :func:`save_file`.

    Args:
        source: the checkpoint that is converted. It gives the stem if ``out`` is a folder.
        out: a folder, or a file name that ends in ``.pth``.

    Returns:
        Folder and stem.

    Raises:
        ValueError: ``out`` has another suffix.
    """
    if out.is_dir() or not out.suffix:
        return out, re.sub(r"(\.pth|\.pt)?(\.tar)?$", "", source.name)
    if out.suffix != ".pth":
        raise ValueError(f"the output must be a folder or end in .pth, got {out}")
    return out.parent, out.stem


def sha256_of(path: str | Path) -> str:
    """Compute the SHA-256 of a file, in hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

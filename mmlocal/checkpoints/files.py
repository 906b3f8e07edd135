"""Checkpoint files: reading them executes nothing, and writing them is all or nothing."""

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
    """Takes the place of an object beside the weights, and keeps nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# MMEngine's training runs write NumPy numbers, and loss histories with bound methods, beside the
# weights. None of it is needed here. The real objects must not be callable from a file: with the
# real `getattr`, a file reaches every module of this process.
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
        map_location: as in :func:`torch.load`.

    Returns:
        The dict in the file. NumPy arrays and numbers, and MMEngine's loss histories, are replaced
        by empty objects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds objects other than tensors and plain data, or is no
            dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace, *_STAND_INS]),
        ):
            warnings.simplefilter("ignore")  # the error says it
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"checkpoint {path} cannot be read safely: {_reason(error)}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"checkpoint {path} must hold a dict, got {type(checkpoint).__name__}")
    return checkpoint


def _reason(error: Exception) -> str:
    """PyTorch's reason in one line, without its advice to turn safety off."""
    text = str(error).strip()
    if match := re.search(r"GLOBAL (\S+)", text):
        return f"it refers to {match[1]}, which is neither a tensor nor plain data"
    if isinstance(error, PermissionError) or "TorchScript" in text:
        return text.splitlines()[0]
    return "it is damaged, or was not written by PyTorch"


def save_file(checkpoint: dict, folder: str | Path, stem: str) -> Path:
    """Write a checkpoint to ``<stem>-<first 8 hex digits of the file's SHA-256>.pth``.

    Equal checkpoints give equal files, so writing one twice changes nothing. The file appears
    under its name only when it is complete.

    Args:
        checkpoint: tensors and plain data.
        folder: made if missing.
        stem: name of the file up to the hash.

    Returns:
        Path of the file.

    Raises:
        OSError: the folder or file cannot be written.
    """
    # By way of memory: PyTorch puts the name of the file it writes to into the file.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getbuffer()
    path = Path(folder) / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    return path


def name_output(source: Path, out: Path) -> tuple[Path, str]:
    """Folder and stem, for :func:`save_file`, of what is made of the checkpoint ``source``.

    Args:
        source: its name is kept if ``out`` is a folder.
        out: a folder, or a file name in ``.pth``.

    Raises:
        ValueError: ``out`` has another suffix.
    """
    if out.is_dir() or not out.suffix:
        return out, re.sub(r"(\.pth|\.pt)?(\.tar)?$", "", source.name)
    if out.suffix != ".pth":
        raise ValueError(f"the output must be a folder or end in .pth, got {out}")
    return out.parent, out.stem


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file in hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

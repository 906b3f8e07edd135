"""Reading checkpoint files without executing what they hold."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch


def load_file(path: str | Path, map_location: str = "cpu") -> dict:
    """Read a checkpoint written by PyTorch, timm's trainers or MMEngine.

    Args:
        path: a local file.
        map_location: as in :func:`torch.load`.

    Returns:
        The dict in the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds objects other than tensors and plain data, or is no
            dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_mmengine_globals()]):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"checkpoint {path} cannot be read safely: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"checkpoint {path} must hold a dict, got {type(checkpoint).__name__}")
    return checkpoint


def _mmengine_globals() -> list:
    """The plain-data classes that MMEngine writes beside the weights, if MMEngine is there."""
    try:
        from mmengine.runner.checkpoint import get_torch_safe_globals
    except ImportError:
        return []
    return get_torch_safe_globals()

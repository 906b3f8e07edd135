"""From the checkpoint of a training run to a file to hand out."""

from pathlib import Path

import torch

from mmlocal.checkpoints import load_file, save_file
from mmlocal.checkpoints.files import name_output


def publish_checkpoint(source: str, out: str) -> Path:
    """Write the weights of a checkpoint, and what ``meta`` tells about them, to a new file.

    The new file holds tensors and plain values only, so it loads with ``weights_only=True``.
    Optimizer, schedulers and logs are left out. With ``EMAHook``, the weights are the averaged
    ones: MMEngine saves these as ``state_dict``.

    Args:
        source: checkpoint that MMEngine wrote. Nothing in it is executed.
        out: folder, to keep the name of ``source``, or a file name in ``.pth``.

    Returns:
        Path of the new file, which has the first 8 digits of its SHA-256 before the suffix.

    Raises:
        FileNotFoundError: no such ``source``.
        ValueError: ``source`` is damaged, unsafe or has no ``state_dict``; ``out`` has another
            suffix.
        OSError: ``out`` cannot be written.
    """
    folder, stem = name_output(Path(source), Path(out).expanduser())
    checkpoint = load_file(source)
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict):
        raise ValueError(f"checkpoint {source} has no state_dict")
    content = {"meta": _without_objects(checkpoint.get("meta", {})), "state_dict": dict(weights)}
    return save_file(content, folder, stem)


def _without_objects(values: dict) -> dict:
    """Those entries of a dict, nested or not, that hold tensors and plain values only."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, dict):
            kept[key] = _without_objects(value)
        elif _is_plain(value):
            kept[key] = value
    return kept


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bytes, int, float, torch.Tensor))

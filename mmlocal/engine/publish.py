"""From the checkpoint of a training run to a file to hand out."""

import os.path as osp
from pathlib import Path

import torch

from mmlocal.checkpoints import load_file, save_file


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
        ValueError: ``source`` is damaged, unsafe or has no ``state_dict``.
        OSError: ``out`` cannot be written.
    """
    checkpoint = load_file(source)
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict):
        raise ValueError(f"checkpoint {source} has no state_dict")
    path = Path(out if out.endswith(".pth") else osp.join(out, osp.basename(source)))
    content = {"meta": _without_objects(checkpoint.get("meta", {})), "state_dict": dict(weights)}
    return save_file(content, path.parent, path.stem)


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

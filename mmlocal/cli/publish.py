"""Strip a checkpoint for publication, to weights and plain meta data, with a hash in its name."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from mmlocal.checkpoints import find_file, load_file, save_file
from mmlocal.checkpoints.files import SUFFIXES, meta_of, name_output
from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("publish"), description=__doc__)
    parser.add_argument(
        "source", metavar="IN", help="checkpoint of a training run, or the folder of the run"
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="folder, or file in .pth or .safetensors; the name gets the first 8 digits of the "
        "file's SHA-256",
    )
    parser.add_argument(
        "--format",
        choices=[suffix.removeprefix(".") for suffix in SUFFIXES],
        help="format of the file; default: by the suffix of OUT, pth for a folder",
    )
    parser.add_argument(
        "--half", action="store_true", help="store float16 weights, which need half the space"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: run(**vars(parse_args(argv))))


def run(source: str, out: str, format: str | None = None, half: bool = False) -> None:
    """Call :func:`publish` and print the path of the new file.

    Args:
        source: checkpoint that MMEngine wrote, or the folder of its run.
        out: folder or name of a ``.pth`` or ``.safetensors`` file.
        format: ``"pth"`` or ``"safetensors"``; ``None`` for the suffix of ``out``.
        half: whether to store float16 weights.

    Raises:
        UsageError: ``source`` cannot be read, ``out`` cannot be written, or a package is missing.
    """
    try:
        path = publish(source, out, format, half)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    print(f"wrote {path}")


def publish(
    source: str | Path, out: str | Path, format: str | None = None, half: bool = False
) -> Path:
    """Write the weights of a checkpoint, and the plain values of its ``meta``, to a new file.

    The new file holds tensors and plain values only, so reading it executes nothing. It has no
    optimizer, schedulers or logs. If the run used ``EMAHook``, the weights are the averaged ones,
    because MMEngine saves these as ``state_dict``.

    Args:
        source: checkpoint that MMEngine wrote, or the folder of its run. Nothing in it is executed.
        out: name of a ``.pth`` or ``.safetensors`` file, or a folder, to keep the name of
            ``source``.
        format: ``"pth"`` or ``"safetensors"``; ``None`` for the suffix of ``out``, or ``"pth"`` if
            ``out`` is a folder. A file of safetensors stores ``meta`` as JSON.
        half: whether to store all floating-point weights in float16. A model of float32 loads them.

    Returns:
        Path of the new file. Its name ends in the first 8 digits of the file's SHA-256.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ImportError: the package safetensors is missing.
        ValueError: ``source`` is damaged, unsafe or has no ``state_dict``, ``out`` has another
            suffix than the format, or a weight is too large for float16.
        OSError: ``out`` cannot be written.
    """
    suffix = None if format is None else f".{format}"
    source = find_file(source)
    target = name_output(source, Path(out).expanduser(), suffix)
    checkpoint = load_file(source)
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict):
        raise ValueError(f"checkpoint {source} has no state_dict")
    if half:
        weights = {name: _half(name, value) for name, value in weights.items()}
    content = {"meta": _plain_entries(meta_of(checkpoint)), "state_dict": dict(weights)}
    return save_file(content, *target)


def _half(name: str, value: object) -> object:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    half = value.half()
    if not torch.equal(half.isfinite(), value.isfinite()):
        raise ValueError(
            f"{name} is too large for float16: its largest value is {value.abs().max()}"
        )
    return half


def _plain_entries(values: dict) -> dict:
    """The entries of a dict, and of the dicts in it, that are tensors or plain values."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, dict):
            kept[key] = _plain_entries(value)
        elif _is_plain(value):
            kept[key] = value
    return kept


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bytes, int, float, torch.Tensor))

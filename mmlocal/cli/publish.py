"""Strip a checkpoint for publication, to weights and plain meta data, with a hash in its name."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from mmlocal.checkpoints import load_file, save_file
from mmlocal.checkpoints.files import name_output
from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("publish"), description=__doc__)
    parser.add_argument("source", metavar="IN", help="checkpoint of a training run")
    parser.add_argument(
        "out",
        metavar="OUT",
        help="folder or .pth file; the name gets the first 8 digits of the file's SHA-256",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: run(**vars(parse_args(argv))))


def run(source: str, out: str) -> None:
    """Call :func:`publish` and print the path of the new file.

    Args:
        source: checkpoint that MMEngine wrote.
        out: folder or name of a ``.pth`` file.

    Raises:
        UsageError: ``source`` cannot be read, or ``out`` cannot be written.
    """
    try:
        path = publish(source, out)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    print(f"wrote {path}")


def publish(source: str | Path, out: str | Path) -> Path:
    """Write the weights of a checkpoint, and the plain values of its ``meta``, to a new file.

    The new file holds tensors and plain values only, so it loads with ``weights_only=True``. It has
    no optimizer, schedulers or logs. If the run used ``EMAHook``, the weights are the averaged
    ones, because MMEngine saves these as ``state_dict``.

    Args:
        source: checkpoint that MMEngine wrote. Nothing in it is executed.
        out: name of a ``.pth`` file, or a folder, to keep the name of ``source``.

    Returns:
        Path of the new file. Its name ends in the first 8 digits of the file's SHA-256.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ValueError: ``source`` is damaged, unsafe or has no ``state_dict``, or ``out`` has another
            suffix than ``.pth``.
        OSError: ``out`` cannot be written.
    """
    folder, stem = name_output(Path(source), Path(out).expanduser())
    checkpoint = load_file(source)
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict):
        raise ValueError(f"checkpoint {source} has no state_dict")
    content = {"meta": _plain_entries(checkpoint.get("meta", {})), "state_dict": dict(weights)}
    return save_file(content, folder, stem)


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

"""Convert a checkpoint of an official code base for use with mmdet, mmseg and mmpretrain."""

import argparse
from collections.abc import Sequence
from typing import Any

from mmlocal.checkpoints import SYSTEMS, convert_file
from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.registry import MODELS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("convert"), description=__doc__)
    parser.add_argument(
        "source",
        metavar="IN",
        help="official checkpoint file; for qna, also a folder of checkpoint files",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="folder, or file in .pth or .safetensors; the name gets the first 8 digits of the "
        "file's SHA-256",
    )
    parser.add_argument(
        "--from", dest="system", required=True, choices=SYSTEMS, help="code base that wrote it"
    )
    parser.add_argument("--dry-run", action="store_true", help="report, but write nothing")
    # Each code base has other options, so only the given ones are passed on.
    options = {name: how for system in SYSTEMS.values() for name, how in system.options.items()}
    for option, how in options.items():
        owners = ", ".join(name for name, system in SYSTEMS.items() if option in system.options)
        settings: dict[str, Any] = dict(how, help=f"{owners}: {how['help']}")
        flag = f"--{option.replace('_', '-')}"
        parser.add_argument(flag, default=argparse.SUPPRESS, **settings)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: convert(**vars(parse_args(argv))))


def convert(source: str, out: str, system: str, dry_run: bool = False, **options: object) -> None:
    """Convert a checkpoint file, and print a report on its weights.

    Args:
        source: official checkpoint file; for QnA-ViT, also a folder of checkpoint files.
        out: folder, or name of a ``.pth`` or ``.safetensors`` file.
        system: code base that wrote ``source``, a key of :data:`mmlocal.checkpoints.SYSTEMS`.
        dry_run: report, but write nothing.
        **options: arguments of the converter of this code base.

    Raises:
        UsageError: ``source`` cannot be read or converted, ``out`` cannot be written, the code base
            has no such option, or a library is missing.
    """
    try:
        conversion, path = convert_file(source, out, MODELS.build, system, dry_run, **options)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    print(conversion)
    print(f"wrote {path}" if path else "dry run: nothing written")

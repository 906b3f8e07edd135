"""Convert a checkpoint of an official code base for use with mmdet, mmseg and mmpretrain."""

import argparse
from collections.abc import Sequence

from mmlocal.checkpoints import SYSTEMS, convert_file
from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.registry import MODELS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("convert"), description=__doc__)
    parser.add_argument(
        "source", metavar="IN", help="official checkpoint file; of qna also a folder of them"
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="folder, or file name in .pth; the name gets the first 8 digits of the file's SHA-256",
    )
    parser.add_argument(
        "--from", dest="system", required=True, choices=SYSTEMS, help="whose checkpoint it is"
    )
    parser.add_argument("--dry-run", action="store_true", help="report, but write nothing")
    # Only what is given is passed on: each code base has options of its own.
    options = {o: how for system in SYSTEMS.values() for o, how in system.options.items()}
    for option, how in options.items():
        owners = ", ".join(name for name, system in SYSTEMS.items() if option in system.options)
        flag, text = "--" + option.replace("_", "-"), f"{owners}: {how['help']}"
        parser.add_argument(flag, **{**how, "help": text, "default": argparse.SUPPRESS})
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    run_tool(lambda: run(parse_args(argv)))


def run(args: argparse.Namespace) -> None:
    """Convert, and print what became of each weight. Raises ``UsageError``."""
    try:
        conversion, path = convert_file(build=MODELS.build, **vars(args))
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(error) from error
    print(conversion)
    print(f"wrote {path}" if path else "dry run: nothing written")

"""Make a checkpoint to hand out: weights and meta data only, safe to load, its hash in its name."""

import argparse
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.engine.publish import publish_checkpoint
from mmlocal.errors import UsageError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("publish"), description=__doc__)
    parser.add_argument("source", metavar="IN", help="checkpoint of a training run")
    parser.add_argument(
        "out",
        metavar="OUT",
        help="folder, or file name in .pth; the name gets the first 8 digits of the file's SHA-256",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    run_tool(lambda: run(parse_args(argv)))


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint and print its path. Raises ``UsageError``."""
    try:
        path = publish_checkpoint(args.source, args.out)
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    print(f"wrote {path}")

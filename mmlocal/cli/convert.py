"""Convert a checkpoint of an official code base for use with mmdet, mmseg and mmpretrain."""

import argparse
from collections.abc import Sequence

from mmlocal.checkpoints.convert import SYSTEMS, convert_file
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
    given = dict(default=argparse.SUPPRESS)
    elsa = parser.add_argument_group("options of elsa")
    elsa.add_argument("--ema", action="store_true", help="take the averaged weights", **given)
    elsa.add_argument(
        "--lam",
        type=float,
        help="exponent of the multiplicative ghost head (default: by shape)",
        **given,
    )
    elsa.add_argument(
        "--gamma", type=float, help="factor of the additive ghost head (default: by shape)", **given
    )
    qna = parser.add_argument_group("options of qna, to resize tables (default: as trained)")
    qna.add_argument("--kernel-size", type=int, metavar="K", help="width of QnA's windows", **given)
    qna.add_argument(
        "--window-sizes",
        type=int,
        nargs="+",
        metavar="W",
        help="width of the attention windows of each stage, for images of 384 pixels: 7 7 24 12",
        **given,
    )
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

"""Convert a checkpoint of an official code base for use with mmdet, mmseg and mmpretrain."""

import argparse

from mmlocal.checkpoints.convert import SYSTEMS, convert_file
from mmlocal.engine import UsageError, run_tool
from mmlocal.registry import MODELS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", metavar="IN", help="official checkpoint file")
    parser.add_argument(
        "out",
        metavar="OUT",
        help="folder, or file name in .pth; the name gets the first 8 digits of the file's SHA-256",
    )
    parser.add_argument(
        "--from", dest="system", required=True, choices=SYSTEMS, help="whose checkpoint it is"
    )
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.add_argument(
        "--lam", type=float, help="exponent of the multiplicative ghost head (default: by shape)"
    )
    parser.add_argument(
        "--gamma", type=float, help="factor of the additive ghost head (default: by shape)"
    )
    parser.add_argument("--dry-run", action="store_true", help="report, but write nothing")
    return parser.parse_args(argv)


def main() -> None:
    try:
        conversion, path = convert_file(build=MODELS.build, **vars(parse_args()))
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    print(conversion)
    print(f"wrote {path}" if path else "dry run: nothing written")


if __name__ == "__main__":
    run_tool(main)

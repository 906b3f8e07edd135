"""Generate the shapes data set: COCO instances, label maps and class folders, from a seed."""

import argparse
import json
import sys
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.datasets.shapes import TASKS, generate_shapes


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("make-shapes"),
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="data/shapes", help="folder to make")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK", help="what to write")
    parser.add_argument("--num-train", type=int, default=800, help="pictures in train")
    parser.add_argument("--num-val", type=int, default=200, help="pictures in val")
    parser.add_argument("--image-size", type=int, default=192, help="side of a scene, pixels")
    parser.add_argument("--cls-size", type=int, default=64, help="side of a cls picture, pixels")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    args = vars(parse_args(argv))
    out = args.pop("out")
    try:
        manifest = generate_shapes(out, **args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"wrote {out}: {json.dumps(manifest['counts'])}")

"""Generate the shapes data set: COCO instances, label maps, class folders and scenes in depth."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.datasets.scenes import LAYOUTS, SCENE_SIZE
from mmlocal.datasets.shapes import DEFAULT_TASKS, TASKS, generate_shapes
from mmlocal.errors import UsageError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("make-shapes"),
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="data/shapes", help="folder to make")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=DEFAULT_TASKS,
        metavar="TASK",
        help=f"tasks to write data for, of {', '.join(TASKS)}",
    )
    parser.add_argument("--num-train", type=int, default=800, help="number of training images")
    parser.add_argument("--num-val", type=int, default=200, help="number of validation images")
    parser.add_argument(
        "--image-size", type=int, default=192, help="side of an image for det and seg, in pixels"
    )
    parser.add_argument(
        "--cls-size", type=int, default=64, help="side of an image for cls, in pixels"
    )
    parser.add_argument(
        "--scene-size",
        type=int,
        nargs=2,
        default=SCENE_SIZE,
        metavar=("HEIGHT", "WIDTH"),
        help="size of an image for multitask, in pixels",
    )
    parser.add_argument(
        "--layout",
        dest="layouts",
        nargs="+",
        default=("nyud",),
        metavar="LAYOUT",
        help=f"folders for multitask, of {', '.join(LAYOUTS)}",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: make_shapes(**vars(parse_args(argv))))


def make_shapes(out: str, **arguments: Any) -> None:
    """Generate the data set and print how many images and instances it has.

    Args:
        out: folder to make.
        **arguments: arguments of :func:`mmlocal.datasets.shapes.generate_shapes`.

    Raises:
        UsageError: an argument is out of range, or ``out`` cannot be written.
    """
    try:
        manifest = generate_shapes(out, **arguments)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    print(f"wrote {out}: {json.dumps(manifest['counts'])}")

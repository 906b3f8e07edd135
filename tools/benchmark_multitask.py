"""Measure attention among tasks: one deformable step beside global attention and mmcv's op."""

import argparse
import sys
from pathlib import Path

from mmlocal.cli.tool import run_tool

# The folder benchmarks/ is only in a clone. mmlocal is imported above, so that the clone does not
# hide an installed mmlocal.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import add_run_arguments
from benchmarks.multitask import benchmark_multitask, format_multitask


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(107, 140),
        metavar=("HEIGHT", "WIDTH"),
        help="size of the maps for one step (default: 107 140, as for NYUD-v2)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=(213, 280),
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images for whole networks; 0 0 leaves them out (default: 213 280)",
    )
    parser.add_argument("--tasks", type=int, default=4, help="number of tasks (default: 4)")
    parser.add_argument("--batch-size", type=int, default=1, help="images in a batch (default: 1)")
    add_run_arguments(parser, rounds=3)
    return parser.parse_args(argv)


def main() -> None:
    result = benchmark_multitask(**vars(parse_args()))
    print(format_multitask(result))


if __name__ == "__main__":
    run_tool(main)

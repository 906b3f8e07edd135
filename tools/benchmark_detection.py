"""Measure training steps of Mask R-CNN: ELSA-Swin-T beside Swin-T, with and without with_cp."""

import argparse
import sys
from pathlib import Path

from mmlocal.cli.tool import run_tool

# The folder benchmarks/ is only in a clone. mmlocal is imported above, so that the clone does not
# hide an installed mmlocal.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import add_run_arguments
from benchmarks.detection import benchmark_detection, format_detection


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(320, 480),
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images in pixels (default: 320 480)",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images in a batch (default: 1)")
    add_run_arguments(parser, rounds=3)
    return parser.parse_args(argv)


def main() -> None:
    print(format_detection(benchmark_detection(**vars(parse_args()))))


if __name__ == "__main__":
    run_tool(main)

"""Measure the models of docs/choosing.md, and write its table and its picture.

Without --measure, the figures of the last measurement stay.
"""

import argparse
import sys
from pathlib import Path

from mmlocal.cli.tool import run_tool

# The folder benchmarks/ is only in a clone. mmlocal is imported above, so that the clone does not
# hide an installed mmlocal.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.choosing import format_choices, measure, read_measured, write_choices


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure all models at inference, in about two minutes on two cores. Close other "
        "programs first",
    )
    parser.add_argument(
        "--rounds", type=int, default=9, help="samples of each time (default: %(default)s)"
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="device to measure on (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    measured = read_measured()
    if args.measure:
        measured = measure(rounds=args.rounds, device=args.device)
    written = write_choices(measured)
    print(format_choices(measured))
    print("wrote", ", ".join(map(str, written)))


if __name__ == "__main__":
    run_tool(main)

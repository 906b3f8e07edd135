"""Measure how time and memory grow, and write the tables and pictures of docs/cost_models.md.

Without --measure, the figures of the last measurement stay.
"""

import argparse
import sys
from pathlib import Path

from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError

# The folder benchmarks/ is only in a clone. mmlocal is imported above, so that the clone does not
# hide an installed mmlocal.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cost_models import measure, measured_path, read_measured, write_models
from benchmarks.report import write_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure all series, in about six minutes on two cores. Close other programs first",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="samples of each time (default: %(default)s)"
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="device to measure on, and whose figures to write (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    path = measured_path(device=args.device)

    def save(found: dict) -> None:
        write_json(found, path)
        print(f"{len(found['results'])} points", flush=True)

    if args.measure:
        result = measure(rounds=args.rounds, device=args.device, save=save)
    else:
        found = read_measured(device=args.device)
        if found is None:
            raise UsageError(f"{path.name} is missing; add --measure", "device")
        result = found
    print("wrote", ", ".join(map(str, write_models(result))))


if __name__ == "__main__":
    run_tool(main)

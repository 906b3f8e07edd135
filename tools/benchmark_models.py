"""Measure speed and memory of our backbones, and of their peers in other libraries."""

import argparse
import sys
from pathlib import Path

from mmlocal.cli.tool import run_tool

# The folder benchmarks/ is only in a clone. mmlocal is imported above, so that the clone does not
# hide an installed mmlocal.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import add_run_arguments
from benchmarks.backbones import list_models
from benchmarks.models import benchmark_models, format_models


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    models = list(list_models())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=models,
        default=models,
        metavar="NAME",
        help=f"models to measure; default: all of {', '.join(models)}",
    )
    parser.add_argument("--batch-size", type=int, default=4, help="images in a batch (default: 4)")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[224],
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images in pixels, one number for a square; default: 224",
    )
    parser.add_argument("--amp", action="store_true", help="run in bfloat16 by autocast")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    add_run_arguments(parser, rounds=10)
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error(f"--size takes a height and a width, got {len(args.size)} numbers")
    args.size = (args.size[0], args.size[-1])
    return args


def main() -> None:
    args = parse_args()
    result = benchmark_models(
        args.out,
        args.models,
        batch_size=args.batch_size,
        size=args.size,
        amp=args.amp,
        compiled=args.compile,
        rounds=args.rounds,
        device=args.device,
    )
    print(format_models(result))


if __name__ == "__main__":
    run_tool(main)

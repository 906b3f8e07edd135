"""Measure time and memory of our ops and of alternatives that a user could pick.

First checks every backend on every shape. If one is wrong, names it and times nothing.
"""

import argparse
import sys
from pathlib import Path

from mmlocal.cli.tool import run_tool
from mmlocal.ops import OPS

# The folder benchmarks/ is only in a clone. mmlocal is imported above, so that the clone does not
# hide an installed mmlocal.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import add_run_arguments
from benchmarks.check import WrongResultError
from benchmarks.ops import DTYPES, benchmark_ops, case_sets
from benchmarks.peers import PEERS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--op", nargs="+", choices=list(OPS), default=list(OPS), help="ops to time (default: all)"
    )
    parser.add_argument(
        "--shapes",
        choices=case_sets(),
        default="stages",
        help="set of shapes. stages (default): the stages of all published models, at 224x224 and "
        "800x1280; figure2: windows of 3x3 to 13x13 on 256x256x64; resolution: maps of 32x32 to "
        "512x512; smoke: tiny maps, to see whether everything runs",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=list(DTYPES),
        default=["float32"],
        help="data types of the tensors (default: float32)",
    )
    parser.add_argument(
        "--backends",
        nargs="*",
        metavar="NAME",
        help="backends to time; default: all that run here (see mmlocal info)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help=f"alternatives to time; default: all of {', '.join(peer.name for peer in PEERS)}",
    )
    add_run_arguments(parser, rounds=20)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    try:
        benchmark_ops(
            args.out,
            ops=args.op,
            shapes=args.shapes,
            dtypes=args.dtype,
            backends=args.backends,
            peers=args.peers,
            rounds=args.rounds,
            device=args.device,
        )
    except WrongResultError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run_tool(main)

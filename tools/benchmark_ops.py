"""Time our ops, and measure their memory, beside what a user would pick instead.

Checks every backend on every shape first; a wrong one is named, and nothing is timed.
"""

import argparse
import sys
from pathlib import Path

from mmlocal.cli.tool import run_tool
from mmlocal.ops import OPS

# In the clone alone. After the lines above, as the clone must not hide an installed mmlocal.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.check import WrongResultError
from benchmarks.ops import DTYPES, benchmark_ops, case_sets
from benchmarks.peers import PEERS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", nargs="+", choices=list(OPS), default=list(OPS))
    parser.add_argument(
        "--shapes",
        choices=case_sets(),
        default="stages",
        help="stages (default): of all published models, at 224x224 and 800x1280; figure2: windows "
        "of 3x3 to 13x13 on 256x256x64; resolution: maps of 32x32 to 512x512; smoke: tiny maps, to "
        "see whether everything runs",
    )
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32"])
    parser.add_argument(
        "--backends",
        nargs="*",
        metavar="NAME",
        help="backends of the ops; default: all that run here (python -m mmlocal.info)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help=f"default: all of {', '.join(peer.name for peer in PEERS)}",
    )
    parser.add_argument("--rounds", type=int, default=20, help="samples of each time")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/benchmark"), metavar="FOLDER")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: the GPU if there is one"
    )
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

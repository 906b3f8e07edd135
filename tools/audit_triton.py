"""Compile the Triton kernels for GPUs that are not there, and predict how fast they can be.

Writes the figures to docs/benchmarks/triton_audit.json and the tables to docs/gpu_kernels.md.
"""

import argparse
import sys
from pathlib import Path

from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError

# The folder benchmarks/ is only in a clone. mmlocal is imported above, so that the clone does not
# hide an installed mmlocal.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.triton_audit import DTYPES, audit, format_audit, write_audit
from benchmarks.triton_calls import CALLS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        metavar="TEXT",
        help="print the figures of the calls whose names have this text, and write nothing",
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    calls = [call for call in CALLS if args.only is None or args.only in call.name]
    if not calls:
        names = ", ".join(repr(call.name) for call in CALLS)
        raise UsageError(f"must be a part of one of {names}; got {args.only!r}", "only")
    rows = audit(calls)
    for dtype in DTYPES:
        print(format_audit(rows, dtype))
    if args.only is None:
        print("wrote", ", ".join(map(str, write_audit(rows))))


if __name__ == "__main__":
    run_tool(main)

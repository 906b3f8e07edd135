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

from benchmarks.triton_audit import audit_all, format_audit, write_audit
from benchmarks.triton_calls import CALLS, VARIANTS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        metavar="TEXT",
        default="",
        help="print the figures of the calls whose names have this text, and write nothing",
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    names = [call.name for call in [*CALLS, *VARIANTS]]
    if not any(args.only in name for name in names):
        known = ", ".join(map(repr, names))
        raise UsageError(f"must be a part of one of {known}; got {args.only!r}", "only")
    rows = audit_all(args.only)
    print(format_audit(rows))
    if not args.only:
        print("wrote", ", ".join(map(str, write_audit(rows))))


if __name__ == "__main__":
    run_tool(main)

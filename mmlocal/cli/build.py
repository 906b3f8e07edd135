"""Compile the C++ kernels for CPUs with the C++ compiler of this machine; CXX names another one."""

import argparse
import sys
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.ops.build import BuildError, build


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return argparse.ArgumentParser(prog=program("build"), description=__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    parse_args(argv)
    try:
        print(f"the C++ kernels are compiled: {build()}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error

"""Compile the C++ kernels for CPUs with the C++ compiler of this machine, or the one in CXX."""

import argparse
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.ops.build import BuildError, build


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return argparse.ArgumentParser(prog=program("build"), description=__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    parse_args(argv)
    run_tool(compile_kernels)


def compile_kernels() -> None:
    """Compile the kernels and print the path of the library.

    Raises:
        UsageError: the kernels cannot be compiled here.
    """
    try:
        print(f"the C++ kernels are compiled: {build()}")
    except BuildError as error:
        raise UsageError(str(error)) from error

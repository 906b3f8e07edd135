"""Print a config with its bases and overrides merged."""

import argparse
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments
from mmlocal.cli.launch import print_config
from mmlocal.cli.tool import run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("print-config"), description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--save-path", help="also write the config to this .py, .json or .yml file")
    parser.add_argument("--graph", action="store_true", help="print the model's modules instead")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    run_tool(lambda: print_config(parse_args(argv)))

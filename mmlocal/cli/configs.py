"""List the configs that come with mmlocal, or print the path of one."""

import argparse
import sys
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.paths import config_libraries, config_path, list_configs


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("configs"), description=__doc__)
    parser.add_argument("name", nargs="?", help="print the path of this config")
    parser.add_argument(
        "--task", choices=config_libraries(), help="list only the configs of one library"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    args = parse_args(argv)
    if args.name is None:
        print("\n".join(list_configs(args.task)))
        return
    try:
        print(config_path(args.name))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error

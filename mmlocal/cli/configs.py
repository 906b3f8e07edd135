"""List the configs that come with mmlocal, or print the path of one."""

import argparse
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.paths import config_libraries, config_path, list_configs


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("configs"), description=__doc__)
    parser.add_argument("name", nargs="?", help="print the path of the config with this name")
    parser.add_argument(
        "--library",
        "--task",  # the old name
        choices=config_libraries(),
        help="list only the configs for this library",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: print(configs(**vars(parse_args(argv)))))


def configs(name: str | None = None, library: str | None = None) -> str:
    """The path of a config, or the names of all configs, one in each line.

    Args:
        name: name of the config to look up; ``None`` to list the names.
        library: list only the configs for this library; ``None`` for all.

    Raises:
        UsageError: no config has this name.
        ValueError: there are no configs for this library.
    """
    if name is None:
        return "\n".join(list_configs(library))
    try:
        return config_path(name)
    except ValueError as error:
        raise UsageError(str(error)) from error

"""Print a config with its bases and overrides merged."""

import argparse
import os
import os.path as osp
from collections.abc import Sequence
from copy import deepcopy

from mmengine.registry import MODELS, init_default_scope

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments
from mmlocal.cli.building import build_errors
from mmlocal.cli.config import load_config
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of

_SUFFIXES = (".py", ".json", ".yml", ".yaml")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("print-config"), description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--save-path", help="also write the config to this .py, .json or .yml file")
    parser.add_argument("--graph", action="store_true", help="print the model's modules instead")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: print_config(**vars(parse_args(argv))))


def print_config(
    config: str,
    cfg_options: dict | None = None,
    save_path: str | None = None,
    graph: bool = False,
) -> None:
    """Print the merged config.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        cfg_options: settings to merge into the config, with dotted keys.
        save_path: also write the config to this file; its suffix sets the format.
        graph: print the modules of the model instead of the config.

    Raises:
        UsageError: there is no such config, the model cannot be built here, or the file cannot be
            written.
    """
    if save_path and not save_path.endswith(_SUFFIXES):
        raise UsageError(f"must end in .py, .json, .yml or .yaml, got {save_path!r}", "save_path")
    cfg = load_config(config, cfg_options)
    if graph:
        library_of(cfg).require()
        check_settings(cfg, [])
        init_default_scope(cfg.default_scope)
        with build_errors(cfg):
            model = MODELS.build(deepcopy(cfg.model))  # building adds to the config
        print(model)
    else:
        print(cfg.pretty_text)
    if save_path:
        try:
            os.makedirs(osp.dirname(osp.abspath(save_path)), exist_ok=True)
            cfg.dump(save_path)
        except OSError as error:
            raise UsageError(f"cannot be written: {error}", "save_path") from error

"""Train auto-encoders with different layers alike, and compare their reconstructions."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import DictAction

from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.engine.autoencoders import CONFIGS, compare_autoencoders, format_comparison


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("compare-autoencoders"), description=__doc__)
    parser.add_argument(
        "configs",
        nargs="*",
        default=CONFIGS,
        help="configs or their names; default: the three on generated shapes",
    )
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/autoencoders"))
    parser.add_argument(
        "--lrs",
        type=float,
        nargs="+",
        default=(),
        help="learning rates to try for each config; the one with the least L1 counts",
    )
    parser.add_argument("--num-pictures", type=int, default=8, help="images in a row")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="settings that override all configs, such as train_cfg.max_epochs=2",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    run_tool(lambda: run(parse_args(argv)))


def run(args: argparse.Namespace) -> None:
    """Train, compare and print the comparison. Raises ``UsageError``."""
    summary = compare_autoencoders(
        args.work_dir, args.configs, args.lrs, args.cfg_options, args.num_pictures
    )
    print(format_comparison(summary))

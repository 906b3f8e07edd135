"""Train a model from a config of mmdet, mmseg, mmpretrain or plain MMEngine."""

import argparse
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments, add_launcher_arguments, add_loader_arguments
from mmlocal.cli.tool import run_tool
from mmlocal.cli.training import run_training


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("train"), description=__doc__)
    add_config_arguments(parser)
    add_launcher_arguments(parser)
    add_loader_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="resume from this checkpoint; without a path, from the last one in the work dir",
    )
    parser.add_argument(
        "--amp",
        action="store_true",
        help="train in mixed precision; without a GPU, only the backbone computes in bfloat16",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by batch size / auto_scale_lr.base_batch_size",
    )
    parser.add_argument("--no-validate", action="store_true", help="do not validate while training")
    parser.add_argument(
        "--no-persistent-workers",
        action="store_true",
        help="turn persistent_workers off in all dataloaders",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: run_training(**vars(parse_args(argv))))

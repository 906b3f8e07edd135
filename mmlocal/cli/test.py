"""Test a checkpoint with a config of mmdet, mmseg, mmpretrain or plain MMEngine."""

import argparse
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments, add_launcher_arguments, add_loader_arguments
from mmlocal.cli.testing import run_testing
from mmlocal.cli.tool import run_tool


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("test"), description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file or URL")
    add_launcher_arguments(parser)
    add_loader_arguments(parser)
    parser.add_argument(
        "--out",
        help="file or folder for the results: for mmdet a pickle of the predictions, for mmseg a "
        "folder of PNG files, for mmpretrain a file with the item of --out-item",
    )
    parser.add_argument(
        "--out-item",
        choices=["metrics", "pred"],
        help="mmpretrain: item to write to --out (default: pred, the predictions)",
    )
    parser.add_argument(
        "--amp",
        action="store_true",
        help="test in mixed precision, unless the CPU has no instructions for bfloat16",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="augment the test images by tta_model and tta_pipeline of the config; without them, "
        "mmdet and mmpretrain use an image and its mirror image",
    )
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument(
        "--show-dir",
        help="folder for pictures of the predictions; for mmdet it lies in the run's folder in the "
        "work dir",
    )
    parser.add_argument("--wait-time", type=float, default=2, help="seconds to show each picture")
    parser.add_argument("--interval", type=int, help="mmpretrain: draw every n-th image")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: run_testing(**vars(parse_args(argv))))

"""Draw the local attention of a model on an image: attention received, and kernels side by side."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import MMLogger

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments
from mmlocal.cli.tool import run_tool
from mmlocal.engine.attention import draw_attention


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("visualize-attention"), description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("checkpoint", nargs="?", help="weights; default: random ones")
    parser.add_argument("image", nargs="?", help="picture to run the model on")
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path("work_dirs/attention"),
        help="folder for the pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="PATTERN",
        help="names of layers, * for any text ('*.stages.0.*'); default: all",
    )
    parser.add_argument("--list-layers", action="store_true", help="print their names and leave")
    parser.add_argument(
        "--heads", type=_count, default=8, help="how many heads of each layer (default: 8)"
    )
    parser.add_argument("--device", help="default: the GPU if there is one, else cpu")
    args = parser.parse_intermixed_args(argv)
    if args.image is None:  # of two paths, the checkpoint is the one to leave out
        args.checkpoint, args.image = None, args.checkpoint
    if args.image is None and not args.list_layers:
        parser.error("the following arguments are required: image")
    return args


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of heads, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    run_tool(lambda: run(parse_args(argv)))


def run(args: argparse.Namespace) -> None:
    """Draw, or list the layers. Raises ``UsageError``."""
    MMLogger.get_current_instance().setLevel("ERROR")  # its notes go to stdout
    draw_attention(args)

"""Show or write the images of a config's data set with their annotations.

The modes concat and pipeline (steps side by side) of mmpretrain's own tool are left out. It is in
.mim/tools/visualization of that package, and needs an older Matplotlib than the tested one.
"""

import argparse
from collections.abc import Sequence

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments
from mmlocal.cli.tool import run_tool
from mmlocal.engine.browse import browse


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("browse"), description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--output-dir", "-o", help="folder to write the pictures to")
    parser.add_argument("--not-show", action="store_true", help="open no window")
    parser.add_argument("--phase", "-p", choices=["train", "val", "test"], default="train")
    parser.add_argument("--show-number", "-n", type=int, help="how many images (default: all)")
    parser.add_argument("--show-interval", "-i", type=float, default=2, help="seconds per picture")
    parser.add_argument(
        "--mode",
        "-m",
        choices=["original", "transformed"],
        default="transformed",
        help="images as on disk, or after the pipeline (default)",
    )
    parser.add_argument(
        "--channel-order",
        "-c",
        choices=["BGR", "RGB"],
        default="BGR",
        help="order in which the pipeline hands on the channels (default: BGR)",
    )
    parser.add_argument(
        "--rescale-factor", "-r", type=float, help="mmpretrain: enlarge the pictures by this factor"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    run_tool(lambda: browse(parse_args(argv)))

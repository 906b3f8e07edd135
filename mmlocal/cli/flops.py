"""Count parameters and GFLOPs of a model from a config of mmdet, mmseg or mmpretrain."""

import argparse
from collections.abc import Sequence

from mmengine.logging import MMLogger

from mmlocal.analysis import model_complexity, published_table
from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments
from mmlocal.cli.config import load_config
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.libraries import LIBRARIES, library_of


class _PrintTable(argparse.Action):
    """Like ``--help``: needs no config, prints and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, *args, **kwargs) -> None:
        _silence()
        for library in LIBRARIES.values():
            library.require()
        print(published_table())
        parser.exit()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("flops"),
        description=__doc__,
        epilog="One FLOP is one multiply-accumulate, as in papers. Two-stage detectors are counted "
        "with as many proposals and masks as test_cfg allows.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--shape",
        type=_pixels,
        nargs="+",
        metavar=("HEIGHT", "WIDTH"),
        help="size of the image, one number for a square; default: that of the published figures, "
        "800x1280 for mmdet, 512x2048 for mmseg, the test pipeline's for mmpretrain",
    )
    parser.add_argument(
        "--device",
        choices=["meta", "cpu", "cuda"],
        default="meta",
        help="meta (default) works out shapes only; cpu and cuda run the model, which those need "
        "whose shapes depend on values (Deformable DETR, DINO)",
    )
    parser.add_argument(
        "--table",
        action=_PrintTable,
        nargs=0,
        help="instead: print the table of docs/models.md for all configs of mmlocal",
    )
    args = parser.parse_args(argv)
    if args.shape and len(args.shape) > 2:
        parser.error(f"--shape takes a height and a width, got {len(args.shape)} numbers")
    if args.shape:
        args.shape = (args.shape[0], args.shape[-1])
    return args


def _pixels(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of pixels, got {text!r}")
    return int(text)


def _silence() -> None:
    MMLogger.get_current_instance().setLevel("ERROR")  # its notes go to stdout


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    run_tool(lambda: run(parse_args(argv)))


def run(args: argparse.Namespace) -> None:
    """Count, and print the parts. Raises ``UsageError``."""
    cfg = load_config(args.config, args.cfg_options)
    library_of(cfg).require()
    _silence()
    try:
        found = model_complexity(cfg, args.shape, args.device)
    except ValueError as error:
        raise UsageError(f"--shape: {error}") from error
    except RuntimeError as error:
        if args.device != "meta":
            raise
        raise UsageError(
            f"this model cannot be counted without values ({error}); add --device cpu"
        ) from error
    print(f"image       {found.shape[0]}x{found.shape[1]}")
    print(f"parameters  {found.parameters / 1e6:.2f} M ({found.parameters:,})")
    print(f"GFLOPs      {found.total_macs / 1e9:.2f}")
    for operator, macs in sorted(found.macs.items(), key=lambda item: -item[1]):
        print(f"  {macs / 1e9:10.3f}  {operator}")

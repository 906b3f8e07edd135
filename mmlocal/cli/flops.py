"""Count parameters and GFLOPs of a model from a config."""

import argparse
from collections.abc import Sequence
from typing import Any, Literal

from mmengine.logging import MMLogger
from torch import nn

from mmlocal import list_configs
from mmlocal.analysis import Complexity, build_to_count, count_model
from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments, number_of
from mmlocal.cli.building import build_errors
from mmlocal.cli.config import load_config
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.libraries import LIBRARIES, library_of
from mmlocal.paths import config_libraries


class _PrintTable(argparse.Action):
    """Print the table and exit, without a config, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        _silence()
        run_tool(lambda: print(published_table()))
        parser.exit()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("flops"),
        description=__doc__,
        epilog="One FLOP is one multiply-accumulate, as in papers. A two-stage detector is counted "
        "with as many proposals and masks as its test_cfg allows.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--shape",
        type=number_of("pixels"),
        nargs="+",
        metavar=("HEIGHT", "WIDTH"),
        help="size of the image, one number for a square; default: the size of the published "
        "figures: 800x1280 for mmdet, 512x2048 for mmseg, the size of padded images for "
        "multi-task configs, the size of the test pipeline for mmpretrain",
    )
    parser.add_argument(
        "--device",
        choices=["meta", "cpu", "cuda"],
        default="meta",
        help="meta (default) works out shapes only; cpu and cuda run the model, which is necessary "
        "if shapes depend on values (Deformable DETR, DINO)",
    )
    parser.add_argument(
        "--modules",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also print the work of these modules of the model, such as decode_head.interaction: "
        "in multiply-accumulates, and with one FLOP for each product, one for each sum and three "
        "for each element of a softmax, as some papers count",
    )
    parser.add_argument(
        "--table",
        action=_PrintTable,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the table of docs/models.md for all configs of mmlocal, and exit",
    )
    args = parser.parse_args(argv)
    if args.shape and len(args.shape) > 2:
        parser.error(f"--shape takes a height and a width, got {len(args.shape)} numbers")
    if args.shape:
        args.shape = (args.shape[0], args.shape[-1])
    return args


def _silence() -> None:
    MMLogger.get_current_instance().setLevel("ERROR")  # it logs to stdout


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    _silence()
    run_tool(lambda: print(format_complexity(flops(**vars(parse_args(argv))))))


def flops(
    config: str,
    cfg_options: dict | None = None,
    shape: tuple[int, int] | None = None,
    device: Literal["meta", "cpu", "cuda"] = "meta",
    modules: Sequence[str] = (),
) -> Complexity:
    """Count the parameters of the model of a config, and its multiply-accumulates for one image.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        cfg_options: settings to merge into the config, with dotted keys.
        shape: height and width of the image in pixels; default: the size of the published figures.
        device: ``"meta"`` works out shapes only. ``"cpu"`` and ``"cuda"`` run the model, which is
            necessary if shapes depend on values.
        modules: names of modules of the model to count on their own.

    Raises:
        UsageError: the config or its library is missing, the model cannot be built, it does not
            take an image of this shape, it has no module of this name, or it cannot be counted on
            ``"meta"``.
    """
    cfg = load_config(config, cfg_options)
    library_of(cfg).require()
    check_settings(cfg, [])
    with build_errors(cfg):
        model = build_to_count(cfg, device)
    _check_modules(model, modules)
    try:
        return count_model(model, cfg, shape, modules)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error), argument="shape") from error
    except RuntimeError as error:
        if device != "meta":
            raise
        raise UsageError(
            f"this model cannot be counted without values ({error}); add --device cpu"
        ) from error


def _check_modules(model: nn.Module, names: Sequence[str]) -> None:
    known = dict(model.named_modules())
    for name in names:
        if not name or name not in known:
            parent = name.rpartition(".")[0]
            while parent not in known:
                parent = parent.rpartition(".")[0]
            children = ", ".join(child for child, _ in known[parent].named_children())
            owner = f"its module {parent}" if parent else "it"
            raise UsageError(
                f"the model has no module {name!r}; {owner} has {children or 'none'}",
                argument="modules",
            )


def format_complexity(found: Complexity) -> str:
    """Format a count as a few lines for the terminal, the most expensive operator first.

    Args:
        found: result of :func:`flops`.
    """
    lines = [
        f"image       {found.shape[0]}x{found.shape[1]}",
        f"parameters  {found.parameters / 1e6:.2f} M ({found.parameters:,})",
        f"GFLOPs      {found.total_macs / 1e9:.2f}",
    ]
    for operator, macs in sorted(found.macs.items(), key=lambda item: -item[1]):
        lines.append(f"  {macs / 1e9:10.3f}  {operator}")
    for name, work in found.modules.items():
        lines += [
            f"module {name} (calls: {work.calls})",
            f"  {work.macs / 1e9:10.3f}  multiply-accumulates, in billions",
            f"  {work.flops / 1e9:10.3f}  products, sums, and three per element of a softmax",
        ]
    return "\n".join(lines)


def published_table() -> str:
    """Count all configs of mmlocal that do not use generated data, as a Markdown table.

    Raises:
        UsageError: the library of a config cannot run here.
    """
    rows = [
        "| config | image | parameters | GFLOPs | of which local attention |",
        "|---|---|---|---|---|",
    ]
    libraries = [library for library in LIBRARIES if library in config_libraries()]
    names = [name for library in libraries for name in list_configs(library)]
    for name in names:
        if {"shapes", "scenes"} & set(name.split("_")):
            continue
        found = flops(name)
        height, width = found.shape
        rows.append(
            f"| {name} | {height}x{width} | {found.parameters:,} | {found.total_macs / 1e9:.2f} "
            f"| {found.local_macs / 1e9:.2f} |"
        )
    return "\n".join(rows)

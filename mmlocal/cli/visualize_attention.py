"""Draw the attention of a model on images, or what a pixel reads in the maps of tasks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import nn

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments, number_of
from mmlocal.cli.attention_pictures import (
    KINDS,
    class_picture,
    find_images,
    overview,
    pictures_of_layers,
    split_paths,
    stems_of,
)
from mmlocal.cli.config import load_config
from mmlocal.cli.models import build_model, load_weights, move_model
from mmlocal.cli.network_inputs import check_paths, load_input, run_model, select_layers
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tool import run_tool, warn
from mmlocal.cli.visualize_sampling import visualize_sampling
from mmlocal.errors import UsageError
from mmlocal.layers import HasGhostHead
from mmlocal.layers.checks import check_int
from mmlocal.libraries import library_of
from mmlocal.visualization.attention import collect_attention, find_layers
from mmlocal.visualization.figures import save_figure
from mmlocal.visualization.sampling import find_sampling_layers


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("visualize-attention"), description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="[checkpoint] image",
        help="file of weights (default: random weights), then images and folders of images",
    )
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path("work_dirs/attention"),
        help="folder for the pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=["overview"],
        help="pictures to draw (default: overview): overview and class (the positions that speak "
        "for classes), one of each image; received, kernels, ghost and tiles, one of each layer",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="PATTERN",
        help="names of layers to draw, * for any text ('*.stages.0.*'); default: all, and in the "
        "overview one of each run of like layers",
    )
    parser.add_argument("--list-layers", action="store_true", help="print their names and exit")
    parser.add_argument(
        "--heads",
        type=number_of("heads"),
        default=4,
        help="draw at most this many heads of each layer (default: %(default)s); not with --task",
    )
    parser.add_argument(
        "--border",
        choices=["divide", "keep"],
        default="divide",
        help="divide the attention that a position receives by the sum that even attention would "
        "give, or keep the sum, which depends on the border (default: %(default)s)",
    )
    parser.add_argument(
        "--task", help="multi-task networks: draw what a pixel of this task reads in all tasks"
    )
    parser.add_argument(
        "--pixel",
        type=_pixel,
        metavar="X,Y",
        help="pixel of the image as the network sees it. With --task: the pixel that reads; "
        "default: a click on the image. With --kinds kernels or ghost: the centre of the enlarged "
        "region; default: the centre of the image",
    )
    parser.add_argument("--device", help="device for the model; default: the GPU if there is one")
    args = parser.parse_intermixed_args(argv)
    args.checkpoint, args.images = split_paths(args.paths)
    if not args.images and not args.list_layers:
        parser.error("the following arguments are required: image")
    if args.task and len(args.images) > 1:
        parser.error("--task draws one image at a time")
    if args.pixel and not args.task and not {"kernels", "ghost"} & {*args.kinds}:
        parser.error("--pixel needs --task, the task of the pixel, or --kinds kernels or ghost")
    return args


def _pixel(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected X,Y in pixels, got {text!r}")
    return int(parts[0]), int(parts[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: run(parse_args(argv)))


def run(args: argparse.Namespace) -> None:
    """Draw the attention, or list the layers.

    Args:
        args: result of :func:`parse_args`.

    Raises:
        UsageError: a mistake that the user can mend.
    """
    MMLogger.get_current_instance().setLevel("ERROR")  # it logs to stdout
    if args.list_layers:
        for name, kind in list_layers(args.config, args.cfg_options).items():
            print(f"{name}  {kind}")
        return
    if args.task:
        visualize_sampling(
            args.config,
            args.checkpoint,
            args.images[0],
            args.out_dir,
            task=args.task,
            pixel=args.pixel,
            layers=args.layers,
            device=args.device,
            cfg_options=args.cfg_options,
        )
        return
    visualize_attention(
        args.config,
        args.checkpoint,
        args.images,
        args.out_dir,
        kinds=args.kinds,
        layers=args.layers,
        heads=args.heads,
        divide_border=args.border == "divide",
        pixel=args.pixel,
        device=args.device,
        cfg_options=args.cfg_options,
    )


def list_layers(config: str, cfg_options: dict | None = None) -> dict[str, str]:
    """List the layers of a model whose attention can be drawn.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        cfg_options: settings to merge into the config, with dotted keys.

    Returns:
        Name of each layer -> its class and the size of its window, such as ``"ELSA 7x7"``, or the
        number of its maps, such as ``"InterTaskAttention, 12 maps"``.

    Raises:
        UsageError: the config or its library is missing, or the model has no such layer.
    """
    cfg = load_config(config, cfg_options)
    library_of(cfg).require()
    check_settings(cfg, [])
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
        deformable = find_sampling_layers(model)
        layers = find_layers(model) if deformable else _find_layers(model, config)
    windows = {name: _describe(layer) for name, layer in layers.items()}
    return windows | {
        name: f"{type(layer).__name__}, {layer.attention.num_maps} maps"
        for name, layer in deformable.items()
    }


def _describe(layer: Any) -> str:
    size = getattr(layer, "kernel_size", getattr(layer, "window_size", None))
    return f"{type(layer).__name__} {size}x{size}" if size else type(layer).__name__


def visualize_attention(
    config: str,
    checkpoint: str | None,
    images: str | Sequence[str],
    out_dir: Path,
    kinds: Sequence[str] = ("overview",),
    layers: Sequence[str] | None = None,
    heads: int = 4,
    divide_border: bool = True,
    pixel: tuple[int, int] | None = None,
    device: str | None = None,
    cfg_options: dict | None = None,
) -> list[Path]:
    """Run a model on images and write pictures of its attention.

    Writes ``<image>_overview.jpg`` to ``out_dir``, or pictures of other kinds, and prints their
    paths. The name of a picture of one layer is ``<image>_<layer>_<kind>``.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        checkpoint: path of the weights; ``None`` for random weights.
        images: paths of images, and of folders of images.
        out_dir: folder for the pictures.
        kinds: some of ``overview``, ``received``, ``kernels``, ``ghost``, ``tiles`` and ``class``.
        layers: names of layers to draw, ``*`` for any text; ``None`` for all, and in the overview
            for one of each run of like layers.
        heads: number of heads to draw of each layer, at most.
        divide_border: whether to divide the attention that a position receives by the sum that
            even attention would give.
        pixel: x and y of the centre of the enlarged region of ``kernels`` and ``ghost``, in the
            image as the network sees it; ``None`` for the centre of the image.
        device: device for the model; ``None`` for the GPU if there is one.
        cfg_options: settings to merge into the config, with dotted keys.

    Returns:
        The paths of the pictures.

    Raises:
        UsageError: the config, its library, an image, the checkpoint, the device or a layer is
            missing; the checkpoint does not fit the model; the pixel is not in an image, or the
            model cannot take it, after the pictures of the others; or the model has nothing of
            this kind to draw.
        ValueError: ``heads`` is below 1, or a kind is unknown.
    """
    check_int(heads=heads)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {unknown[0]!r}")
    cfg = load_config(config, cfg_options)
    library_of(cfg).require()
    check_settings(cfg, [])
    files = find_images([images] if isinstance(images, str) else images)
    for path in files:
        check_paths(path, out_dir)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
        selected: dict[str, nn.Module] = {}
        if {*kinds} != {"class"}:
            selected = select_layers(_find_layers(model, config), layers, "local attention")
        if "ghost" in kinds and not any(isinstance(x, HasGhostHead) for x in selected.values()):
            raise UsageError("none of these layers has a ghost head, as ELSA has", "kinds")
        load_weights(model, checkpoint)
        move_model(model, device or get_device())
        weights = Path(checkpoint).name if checkpoint else "random weights"
        about = f"{Path(config).stem}, {weights}"
        written: list[Path] = []
        failed: list[UsageError] = []
        for stem, path in zip(stems_of(files), files, strict=True):
            try:
                shown, item = load_input(cfg, path)
                center = _center(pixel, shown, path)
                input_size, attention, _ = run_model(model, item, path, collect_attention(selected))
            except UsageError as error:
                if len(files) == 1:
                    raise
                warn(str(error))  # the other images get their pictures
                failed.append(error)
                continue
            for name in selected:
                if name not in attention:
                    print(f"{name}: did not run on this image")
            view = (shown, input_size)
            title = f"{about}, on {Path(path).name}"
            figures = chain(
                overview(attention, layers is None, title, *view, heads, divide_border)
                if "overview" in kinds
                else (),
                pictures_of_layers(attention, kinds, heads, *view, center, divide_border, title),
                class_picture(model, cfg, item, title, *view) if "class" in kinds else (),
            )
            for name, figure in figures:
                out_dir.mkdir(parents=True, exist_ok=True)
                written.append(out_dir / f"{stem}_{name}{KINDS[name.rsplit('_', 1)[-1]]}")
                save_figure(figure, written[-1])
                print(written[-1], flush=True)
    if failed:
        count = f"{len(failed)} of {len(files)} images have no pictures"
        raise UsageError(f"{count}: {failed[0].message}", failed[0].argument) from failed[0]
    return written


def _center(pixel: tuple[int, int] | None, image: np.ndarray, path: str) -> tuple[int, int] | None:
    height, width = image.shape[:2]
    if pixel is None:
        return None
    if pixel[0] >= width or pixel[1] >= height:
        raise UsageError(
            f"the network sees {path!r} as {width}x{height} pixels, got {pixel[0]},{pixel[1]}",
            argument="pixel",
        )
    return pixel[1], pixel[0]


def _find_layers(model: nn.Module, config: str) -> dict[str, nn.Module]:
    layers = find_layers(model)
    if not layers and find_sampling_layers(model):
        raise UsageError(
            f"the model of config {config!r} has no windows to draw; name a task and a pixel with "
            "--task and --pixel, to draw what the pixel reads in the maps of all tasks"
        )
    if not layers:
        raise UsageError(
            f"the model of config {config!r} has no layer of local attention "
            "(such as ELSA, QnA, WindowAttention)"
        )
    return layers

"""Draw the local attention of a model on an image, or what a pixel reads in the maps of tasks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import nn

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments, number_of
from mmlocal.cli.config import load_config
from mmlocal.cli.models import build_model, load_weights, move_model
from mmlocal.cli.network_inputs import check_paths, load_input, run_model, select_layers
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tool import run_tool
from mmlocal.cli.visualize_sampling import visualize_sampling
from mmlocal.errors import UsageError
from mmlocal.layers.checks import check_int
from mmlocal.libraries import library_of
from mmlocal.visualization.attention import collect_attention, find_layers
from mmlocal.visualization.attention_figures import draw_layer
from mmlocal.visualization.sampling import find_sampling_layers


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("visualize-attention"), description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("checkpoint", nargs="?", help="file of weights; default: random weights")
    parser.add_argument("image", nargs="?", help="image to run the model on")
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
        help="names of layers to draw, * for any text ('*.stages.0.*'); default: all",
    )
    parser.add_argument("--list-layers", action="store_true", help="print their names and exit")
    parser.add_argument(
        "--heads",
        type=number_of("heads"),
        default=8,
        help="draw at most this many heads of each layer (default: %(default)s); not with --task",
    )
    parser.add_argument(
        "--task", help="multi-task networks: draw what a pixel of this task reads in all tasks"
    )
    parser.add_argument(
        "--pixel",
        type=_pixel,
        metavar="X,Y",
        help="pixel of the image as the network sees it, for --task; default: a click on the image",
    )
    parser.add_argument("--device", help="device for the model; default: the GPU if there is one")
    args = parser.parse_intermixed_args(argv)
    if args.image is None:  # a single path is the image
        args.checkpoint, args.image = None, args.checkpoint
    if args.image is None and not args.list_layers:
        parser.error("the following arguments are required: image")
    if args.pixel and not args.task:
        parser.error("--pixel needs --task, the task of the pixel")
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
            args.image,
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
        args.image,
        args.out_dir,
        layers=args.layers,
        heads=args.heads,
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
    windows = {
        name: f"{type(layer).__name__} {layer.kernel_size}x{layer.kernel_size}"
        for name, layer in layers.items()
    }
    return windows | {
        name: f"{type(layer).__name__}, {layer.attention.num_maps} maps"
        for name, layer in deformable.items()
    }


def visualize_attention(
    config: str,
    checkpoint: str | None,
    image: str,
    out_dir: Path,
    layers: Sequence[str] | None = None,
    heads: int = 8,
    device: str | None = None,
    cfg_options: dict | None = None,
) -> None:
    """Run a model on an image and write pictures of its local attention.

    Writes ``<layer>_received.png`` and ``<layer>_kernels.png`` to ``out_dir``, and
    ``<layer>_ghost.png`` for a layer with a ghost head. Prints their paths.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        checkpoint: path of the weights; ``None`` for random weights.
        image: path of the image.
        out_dir: folder for the pictures.
        layers: names of layers to draw, ``*`` for any text; ``None`` for all.
        heads: number of heads to draw of each layer, at most.
        device: device for the model; ``None`` for the GPU if there is one.
        cfg_options: settings to merge into the config, with dotted keys.

    Raises:
        UsageError: the config, its library, the image, the checkpoint, the device or a layer is
            missing; the checkpoint does not fit the model; or the model has no local attention.
        ValueError: ``heads`` is below 1.
    """
    check_int(heads=heads)
    cfg = load_config(config, cfg_options)
    library_of(cfg).require()
    check_settings(cfg, [])
    check_paths(image, out_dir)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
        selected = select_layers(_find_layers(model, config), layers, "local attention")
        load_weights(model, checkpoint)
        move_model(model, device or get_device())
        shown, item = load_input(cfg, image)
        input_size, attention, _ = run_model(model, item, image, collect_attention(selected))
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, layer in selected.items():
        if name not in attention:
            print(f"{name}: did not run on this image")
            continue
        figures = draw_layer(name, layer, attention[name], heads, shown, input_size)
        for kind, figure in figures.items():
            path = out_dir / f"{name}_{kind}.png"
            figure.savefig(path)
            print(path, flush=True)


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
            "(such as ELSA, QnA, UpsampleQnA)"
        )
    return layers

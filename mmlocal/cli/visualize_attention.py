"""Draw the local attention of a model on an image: received attention, and attention kernels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from torch import nn

from mmlocal.cli import program
from mmlocal.cli.arguments import add_config_arguments, number_of
from mmlocal.cli.config import innermost_test_dataset, load_config
from mmlocal.cli.models import build_model, load_weights, move_model
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError
from mmlocal.layers.checks import check_int
from mmlocal.libraries import library_of
from mmlocal.libraries.base import type_name
from mmlocal.visualization.attention import LayerAttention, collect_attention, find_layers
from mmlocal.visualization.attention_figures import draw_layer


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
        help="draw at most this many heads of each layer (default: %(default)s)",
    )
    parser.add_argument("--device", help="device for the model; default: the GPU if there is one")
    args = parser.parse_intermixed_args(argv)
    if args.image is None:  # a single path is the image
        args.checkpoint, args.image = None, args.checkpoint
    if args.image is None and not args.list_layers:
        parser.error("the following arguments are required: image")
    return args


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
    """List the layers of a model that offer their local attention.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        cfg_options: settings to merge into the config, with dotted keys.

    Returns:
        Name of each layer -> its class and the size of its window, such as ``"ELSA 7x7"``.

    Raises:
        UsageError: the config or its library is missing, or the model has no local attention.
    """
    cfg = load_config(config, cfg_options)
    library_of(cfg).require()
    check_settings(cfg, [])
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        layers = _find_layers(build_model(cfg), config)
    return {
        name: f"{type(layer).__name__} {layer.kernel_size}x{layer.kernel_size}"
        for name, layer in layers.items()
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
    _check_paths(image, out_dir)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
        selected = _select(_find_layers(model, config), layers)
        load_weights(model, checkpoint)
        move_model(model, device or get_device())
        shown, input_size, attention = _run_model(model, cfg, image, selected)
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


def _check_paths(image: str, out_dir: Path) -> None:
    if not Path(image).is_file():
        raise UsageError(f"image {image!r} is not a file")
    if not cv2.haveImageReader(image):
        raise UsageError(f"image {image!r} is not a picture that OpenCV can read")
    if out_dir.exists() and not out_dir.is_dir():
        raise UsageError(f"{str(out_dir)!r} is a file", argument="out_dir")


def _find_layers(model: nn.Module, config: str) -> dict[str, nn.Module]:
    layers = find_layers(model)
    if not layers:
        raise UsageError(
            f"the model of config {config!r} has no layer of local attention "
            "(such as ELSA, QnA, UpsampleQnA)"
        )
    return layers


def _select(layers: dict[str, nn.Module], patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    selected = set()
    for pattern in patterns or ["*"]:
        found = {name for name in layers if fnmatchcase(name, pattern)}
        if not found:
            raise UsageError(
                f"no layer of local attention matches {pattern!r}; there are {', '.join(layers)}",
                argument="layers",
            )
        selected |= found
    return {name: layer for name, layer in layers.items() if name in selected}


def _run_model(
    model: BaseModel, cfg: Config, path: str, layers: dict[str, nn.Module]
) -> tuple[np.ndarray, tuple[int, int], dict[str, LayerAttention]]:
    """The image as the network sees it, in RGB, its size after padding, and the attention."""
    pipeline = innermost_test_dataset(cfg).pipeline
    steps = [step for step in pipeline if type_name(step["type"]) != "LoadAnnotations"]
    item = Compose(steps)(dict(img_path=path, img_id=0))
    image = item["inputs"].permute(1, 2, 0).clamp(0, 255).byte().numpy()[..., ::-1]
    with torch.no_grad(), collect_attention(layers) as attention:
        data = model.data_preprocessor(pseudo_collate([item]), False)
        try:
            model(**data, mode="predict")
        except ValueError as error:
            raise UsageError(f"the model cannot take image {path!r}: {error}") from error
    return image, tuple(data["inputs"][0].shape[1:]), attention

"""Pictures of the local attention of any model, from a config, a checkpoint and an image."""

from __future__ import annotations

import argparse
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmlocal.checkpoints import load_file, match_state_dict
from mmlocal.cli.building import build_errors, type_name
from mmlocal.cli.config import load_config
from mmlocal.errors import UsageError
from mmlocal.layers import ELSA
from mmlocal.libraries import library_of
from mmlocal.visualization.attention import (
    LayerAttention,
    collect_attention,
    draw_kernels,
    draw_received,
    enlarge,
    find_layers,
    ghost_filters,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the figure of ELSA's ghost head shows: its rows, and in each the channels of one head.
_GHOST_HEADS, _GHOST_CHANNELS = 2, 3


def draw_attention(args: argparse.Namespace) -> None:
    """Run a model on an image and write pictures of its local attention, or list its layers.

    Writes ``<layer>_received.png`` and ``<layer>_kernels.png`` to ``--out-dir``, and for ELSA
    ``<layer>_ghost.png``; prints their paths.

    Raises:
        UsageError: missing config, library, image or checkpoint, one that does not fit the model, a
            device that is not there, a model without local attention, or a layer it has not.
    """
    cfg = load_config(args.config, args.cfg_options)
    library_of(cfg).require()
    if not args.list_layers:
        _check_paths(args.image, args.out_dir)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = _build(cfg)
        layers = find_layers(model)
        if not layers:
            raise UsageError(
                f"the model of config {args.config!r} has no layer of local attention "
                "(ELSA, QnA, UpsampleQnA)"
            )
        if args.list_layers:
            for name, layer in layers.items():
                print(f"{name}  {type(layer).__name__} {layer.kernel_size}x{layer.kernel_size}")
            return
        layers = _select(layers, args.layers)
        _load(model, args.checkpoint)
        _move(model, args.device or get_device())
        image, input_size, attention = _run(model, cfg, args.image, layers)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    for name, layer in layers.items():
        if name not in attention:
            print(f"{name}: did not run on this image")
            continue
        figures = _figures(name, layer, attention[name], args.heads, image, input_size)
        for kind, figure in figures.items():
            path = args.out_dir / f"{name}_{kind}.png"
            figure.savefig(path)
            print(path, flush=True)


def _check_paths(image: str, out_dir: Path) -> None:
    if not Path(image).is_file():
        raise UsageError(f"image {image!r} is not a file")
    if not cv2.haveImageReader(image):
        raise UsageError(f"image {image!r} is not a picture that OpenCV can read")
    if out_dir.exists() and not out_dir.is_dir():
        raise UsageError(f"--out-dir {str(out_dir)!r} is a file")


def _build(cfg: Config) -> nn.Module:
    model = deepcopy(cfg.model)
    if cfg.get("data_preprocessor"):  # as MMEngine's runner does
        model.setdefault("data_preprocessor", cfg.data_preprocessor)
    if cfg.default_scope == "mmseg":  # sliding windows would see a part of the image each
        model.test_cfg = dict(mode="whole")
    with build_errors(cfg):
        return MODELS.build(model).eval()


def _select(layers: dict[str, nn.Module], patterns: list[str] | None) -> dict[str, nn.Module]:
    selected = set()
    for pattern in patterns or ["*"]:
        found = {name for name in layers if fnmatchcase(name, pattern)}
        if not found:
            raise UsageError(
                f"--layers: no layer of local attention matches {pattern!r}; "
                f"there are {', '.join(layers)}"
            )
        selected |= found
    return {name: layer for name, layer in layers.items() if name in selected}


def _load(model: nn.Module, checkpoint: str | None) -> None:
    if checkpoint is None:
        print("note: no checkpoint is given; the weights are random")
        model.init_weights()
        return
    try:
        content = load_file(checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
    source = content.get("state_dict", content)
    _, report = match_state_dict(source, model.state_dict())
    if report.missing or report.mismatched:
        raise UsageError(
            f"checkpoint {checkpoint!r} does not fit the model of the config: {report}"
        )
    model.load_state_dict(source, strict=False)  # which resizes tables as the backbone has it


def _move(model: nn.Module, device: str) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # unknown, or not there
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {device!r} cannot be used: {reason}") from error


def _run(
    model: nn.Module, cfg: Config, path: str, layers: dict[str, nn.Module]
) -> tuple[np.ndarray, tuple[int, int], dict[str, LayerAttention]]:
    """The image as the network sees it, in RGB, its size after padding, and the attention."""
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    steps = [step for step in dataset.pipeline if type_name(step["type"]) != "LoadAnnotations"]
    item = Compose(steps)(dict(img_path=path, img_id=0))
    image = item["inputs"].permute(1, 2, 0).clamp(0, 255).byte().numpy()[..., ::-1]
    with torch.no_grad(), collect_attention(layers) as attention:
        data = model.data_preprocessor(pseudo_collate([item]), False)
        try:
            model(**data, mode="predict")
        except ValueError as error:
            raise UsageError(f"the model cannot take image {path!r}: {error}") from error
    return image, tuple(data["inputs"].shape[2:]), attention


def _figures(
    name: str,
    layer: nn.Module,
    attention: LayerAttention,
    max_heads: int,
    image: np.ndarray,
    input_size: tuple[int, int],
) -> dict[str, Figure]:
    """Pictures of one layer by what they show."""
    maps = attention.maps[0, :, :max_heads]
    queries, heads = maps.shape[:2]
    total = attention.maps.shape[2]
    titles = [
        [("" if queries == 1 else f"query {query}, ") + f"head {head}" for head in range(heads)]
        for query in range(queries)
    ]
    shown = "" if heads == total else f" (first {heads} of {total} heads)"
    kernel = f"{attention.kernel_size}x{attention.kernel_size}"
    received = attention.received()[0, :, :max_heads]
    figures = {
        "received": draw_received(
            enlarge(received, input_size, image.shape[:2]),
            titles,
            f"{name}: attention received{shown}",
            image,
        ),
        "kernels": draw_kernels(
            maps, titles, f"{name}: {kernel} attention of each window{shown}", "attention"
        ),
    }
    if isinstance(layer, ELSA):
        figures["ghost"] = _ghost_figure(name, layer, maps[0])
    return figures


def _ghost_figure(name: str, layer: ELSA, attn: Tensor) -> Figure:
    """For some heads: their attention, and the filters of some of their channels."""
    panels, titles = [], []
    width = layer.v_dims // layer.num_heads
    for head in range(min(_GHOST_HEADS, len(attn))):
        channels = [head * width + i for i in range(min(_GHOST_CHANNELS, width))]
        panels.append(torch.cat([attn[head : head + 1], ghost_filters(layer, attn, channels)]))
        titles.append([f"head {head}: attention", *(f"filter of channel {c}" for c in channels)])
    title = f"{name}: filters after the ghost head, of each window"
    return draw_kernels(torch.stack(panels), titles, title, "weight", signed=True)

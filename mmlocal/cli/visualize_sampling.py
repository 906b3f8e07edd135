"""Draw which positions a pixel of one task reads in the maps of all tasks, and their weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement

from mmlocal.cli.config import load_config
from mmlocal.cli.models import build_model, load_weights, move_model
from mmlocal.cli.network_inputs import (
    check_paths,
    load_input,
    pad_to_input,
    run_model,
    select_layers,
)
from mmlocal.cli.settings import check_settings
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of
from mmlocal.tasks import TASKS
from mmlocal.visualization.multitask_maps import colour_map
from mmlocal.visualization.sampling import collect_samples, draw_samples, find_sampling_layers


def visualize_sampling(
    config: str,
    checkpoint: str | None,
    image: str,
    out_dir: Path,
    task: str,
    pixel: tuple[int, int] | None = None,
    layers: Sequence[str] | None = None,
    device: str | None = None,
    cfg_options: dict | None = None,
) -> None:
    """Run a multi-task network on an image, and draw what one pixel of a task reads.

    Writes ``<layer>_<task>_<x>_<y>.png`` to ``out_dir``, and prints the paths.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        checkpoint: path of the weights; ``None`` for random weights.
        image: path of the image.
        out_dir: folder for the pictures.
        task: the task whose pixel reads.
        pixel: x and y in the image as the network sees it; ``None`` waits for a click in a window.
        layers: names of layers to draw, ``*`` for any text; ``None`` for all.
        device: device for the model; ``None`` for the GPU if there is one.
        cfg_options: settings to merge into the config, with dotted keys.

    Raises:
        UsageError: the config, its library, the image, the checkpoint, the device, a layer or the
            task is missing; the pixel is not in the image; the checkpoint does not fit the model;
            there is no display to click on; or the model has no such layer.
    """
    cfg = load_config(config, cfg_options)
    library_of(cfg).require()
    check_settings(cfg, [])
    check_paths(image, out_dir)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
        found = find_sampling_layers(model)
        if not found:
            raise UsageError(
                f"the model of config {config!r} has no attention between tasks "
                "(InterTaskAttention, of mmlocal.ITSAHead)",
                argument="task",
            )
        selected = select_layers(found, layers, "attention between tasks")
        tasks = list(cfg.model.decode_head.tasks)
        if task not in tasks:
            raise UsageError(f"the model has {', '.join(tasks)}, got {task!r}", argument="task")
        load_weights(model, checkpoint)
        move_model(model, device or get_device())
        shown, item = load_input(cfg, image)
        height, width = shown.shape[:2]
        x, y = pixel or _click(shown, task)
        if not (x < width and y < height):
            raise UsageError(f"the image has {width}x{height} pixels, got {x},{y}", "pixel")
        shown = pad_to_input(model, item, shown)  # positions are fractions of the padded image
        height, width = shown.shape[:2]
        place = ((x + 0.5) / width, (y + 0.5) / height)
        records = collect_samples(selected, tasks.index(task), place)
        _, samples, prediction = run_model(model, item, image, records)
    backgrounds = _backgrounds(prediction, shown.shape[:2])
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, found_samples in samples.items():
        title = f"{name}: positions that pixel ({x}, {y}) of {task} reads"
        figure = draw_samples(found_samples, shown, tasks, task, place, title, backgrounds)
        path = out_dir / f"{name}_{task}_{x}_{y}.png"
        figure.savefig(path)
        print(path, flush=True)


def _backgrounds(prediction: BaseDataElement, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The prediction of each task in colours, if it covers the image that the network sees."""
    drawn = {}
    for task in TASKS.values():
        data = prediction.get(task.pred_field)
        if data is not None and tuple(data.data.shape[-2:]) == size:
            drawn[task.name] = colour_map(task.name, data.data.detach().cpu().numpy())
    return drawn


def _click(image: np.ndarray, task: str) -> tuple[int, int]:
    """Show the image, and wait for a click on it."""
    shows = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if not shows:
        raise UsageError("must be given, as X,Y: there is no display to click on", "pixel")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(num=f"click on a pixel of {task}")
    axis.imshow(image)
    clicks = pyplot.ginput(1, timeout=0)
    pyplot.close(figure)
    if not clicks:
        raise UsageError("the window was closed without a click", "pixel")
    height, width = image.shape[:2]
    x, y = (int(np.clip(round(value), 0, size - 1))
            for value, size in zip(clicks[0], (width, height), strict=True))  # fmt: skip
    return x, y

"""The logic of the page that shows attention: a picture, a layer and a pixel give pictures.

Nothing here depends on the page, and no object here changes, so that visitors do not disturb each
other.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import nn

from mmlocal.errors import UsageError
from mmlocal.tasks import TASKS
from mmlocal.visualization.attention import LayerAttention, collect_attention, find_layers
from mmlocal.visualization.explorer_maps import (
    Grid,
    draw_sums,
    draw_weights,
    enlarge_pixels,
)
from mmlocal.visualization.explorer_pictures import Photograph
from mmlocal.visualization.figures import rasterize
from mmlocal.visualization.multitask_maps import colour_map
from mmlocal.visualization.sampling import collect_samples, draw_samples, find_sampling_layers


@dataclass(frozen=True)
class Network:
    """A model, and the ways of its library to handle pictures.

    Args:
        model: the model, in evaluation mode.
        load: function of the path of a picture. It returns the picture as the network sees it,
            ``(h, w, 3)`` uint8 in RGB, and the item for the network.
        pad: function of the item and this picture. It returns the picture, padded as the network
            pads it.
        run: function of the item, a name for messages, and a context around the prediction. It
            returns the size of the padded input, the value of the context, and the prediction.
        draw: function of the photograph and the prediction. It returns a drawing of the prediction,
            ``(h, w, 3)`` uint8 in RGB.
        steps: names of the steps of the pipeline between loading and packing.
        tasks: names of the tasks of a multi-task network, in the order of its head.
    """

    model: nn.Module
    load: Callable[[str], tuple[np.ndarray, dict]]
    pad: Callable[[dict, np.ndarray], np.ndarray]
    run: Callable[[dict, str, AbstractContextManager], tuple[tuple[int, int], Any, Any]]
    draw: Callable[[np.ndarray, Any], np.ndarray]
    steps: Sequence[str] = ()
    tasks: Sequence[str] = ()


@dataclass(frozen=True)
class View:
    """A photograph on its way through the network.

    Args:
        photograph: the photograph.
        item: item for the network.
        image: ``(h, w, 3)`` uint8 in RGB: the network's input, with its padding.
        seen_size: height and width of the input without padding, in pixels.
        prediction: drawing of the prediction, ``(h, w, 3)`` uint8 in RGB.
        backgrounds: picture of the prediction of each task, of the size of ``image``.
    """

    photograph: Photograph
    item: dict
    image: np.ndarray
    seen_size: tuple[int, int]
    prediction: np.ndarray
    backgrounds: dict[str, np.ndarray]


@dataclass(frozen=True)
class Reading:
    """The attention of one layer to one view.

    Args:
        layer: name of the layer.
        attention: its attention; ``None`` for attention between tasks.
    """

    layer: str
    attention: LayerAttention | None

    @property
    def heads(self) -> int:
        """Number of heads to choose from; 0 for attention between tasks."""
        return self.attention.num_heads if self.attention else 0

    @property
    def queries(self) -> int:
        """Number of queries to choose from; 0 for attention between tasks."""
        return self.attention.num_queries if self.attention else 0

    @property
    def has_ghost(self) -> bool:
        """Whether the layer has a ghost head."""
        return self.attention is not None and self.attention.has_ghost


@dataclass(frozen=True)
class Choice:
    """The part of the attention to draw.

    Args:
        pixel: x and y in the network's input.
        head: one head; ``None`` for the mean of all heads.
        query: one query; ``None`` for the mean of all queries.
        ghost: whether to draw the filter after the ghost head, if the layer has one.
        task: task of the pixel, for attention between tasks.
    """

    pixel: tuple[int, int]
    head: int | None = None
    query: int | None = None
    ghost: bool = False
    task: str | None = None


class Explorer:
    """Pictures of the attention of one network.

    Threads may share an explorer. The network, its visualizer and Matplotlib work for one of them
    at a time.

    Args:
        network: the network.

    Raises:
        UsageError: the model has no layer whose attention can be drawn.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._local = find_layers(network.model)
        self._sampling = find_sampling_layers(network.model) if network.tasks else {}
        self._lock = threading.RLock()
        if not self.layers:
            raise UsageError(
                "the model of the config has no layer whose attention can be drawn "
                "(such as ELSA, QnA, window attention, or attention between tasks)"
            )

    @property
    def layers(self) -> dict[str, str]:
        """Name of each layer whose attention can be drawn -> its class."""
        layers = {**self._local, **self._sampling}
        return {name: type(layer).__name__ for name, layer in layers.items()}

    def open(self, photograph: Photograph, layer: str) -> tuple[View, Reading]:
        """Send a photograph through the network.

        Args:
            photograph: the photograph.
            layer: a key of :attr:`layers`, to read at once.

        Raises:
            UsageError: the network does not take this photograph, or the layer did not run.
        """
        with self._lock:
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder, "photograph.png"))
                cv2.imwrite(path, photograph.image[..., ::-1])
                seen, item = self.network.load(path)
            image = self.network.pad(item, seen)
            attention, sample = self._run(item, photograph.name, layer)
            prediction = enlarge_pixels(self.network.draw(photograph.image, sample))
        backgrounds = _backgrounds(sample, self.network.tasks, image.shape[:2])
        view = View(photograph, item, image, seen.shape[:2], prediction, backgrounds)
        return view, Reading(layer, attention)

    def read(self, view: View, layer: str) -> Reading:
        """Read another layer.

        Args:
            view: what :meth:`open` returned.
            layer: a key of :attr:`layers`.

        Raises:
            UsageError: the layer did not run on this photograph.
        """
        if layer not in self._local:
            return Reading(layer, None)
        with self._lock:
            return Reading(layer, self._run(view.item, view.photograph.name, layer)[0])

    def draw(self, view: View, reading: Reading, choice: Choice) -> dict[str, np.ndarray]:
        """Draw the attention of a pixel, and of all pixels together.

        Args:
            view: what :meth:`open` returned.
            reading: a layer's attention to this view.
            choice: the part to draw.

        Returns:
            Pictures ``(h, w, 3)`` uint8 in RGB by kind. ``pixel``: what the pixel reads.
            ``close_up``: the part of this picture with the positions that it reads. ``received``:
            the attention that each position receives. Attention between tasks has ``pixel`` only,
            with a panel for each map.
        """
        with self._lock:
            if reading.attention is None:
                return {"pixel": self._draw_samples(view, reading.layer, choice)}
            return _draw_attention(view, reading.layer, reading.attention, choice)

    def _run(self, item: dict, name: str, layer: str) -> tuple[LayerAttention | None, Any]:
        layers = {key: module for key, module in self._local.items() if key == layer}
        _, found, sample = self.network.run(item, name, collect_attention(layers))
        if layers and layer not in found:
            raise UsageError(f"the layer {layer} did not run on this picture; choose another one")
        return found.get(layer), sample

    def _draw_samples(self, view: View, layer: str, choice: Choice) -> np.ndarray:
        """Draw the positions that a pixel of one task reads, for which the network runs again."""
        tasks = self.network.tasks
        task = choice.task or tasks[0]
        height, width = view.image.shape[:2]
        place = ((choice.pixel[0] + 0.5) / width, (choice.pixel[1] + 0.5) / height)
        records = collect_samples({layer: self._sampling[layer]}, tasks.index(task), place)
        _, samples, _ = self.network.run(view.item, view.photograph.name, records)
        x, y = choice.pixel
        title = f"{layer}: positions that pixel ({x}, {y}) of {task} reads"
        return rasterize(
            draw_samples(samples[layer], view.image, tasks, task, place, title, view.backgrounds)
        )


def _draw_attention(
    view: View, name: str, attention: LayerAttention, choice: Choice
) -> dict[str, np.ndarray]:
    size = view.image.shape[:2]
    ghost = choice.ghost and attention.has_ghost
    row, column = Grid(attention.output_size, size).token_of(choice.pixel)
    weights = attention.of_pixel(row, column, head=choice.head, query=choice.query, ghost=ghost)
    grid = Grid(attention.map_size, size)
    part = describe_part(attention, choice)
    x, y = choice.pixel
    reads = "filter after the ghost head" if ghost else "attention"
    title = f"{name}\n{reads} of pixel ({x}, {y}), {part}"
    spread = grid.spread(weights)
    drawing = (view.image, spread, title, choice.pixel)
    sums = attention.received(mean=True)[0]
    sums = sums.mean(0) if choice.query is None else sums[choice.query]
    sums = sums.mean(0) if choice.head is None else sums[choice.head]
    received = draw_sums(
        view.image,
        grid.spread(sums),
        f"{name}\nattention received, {part}",
        "1 is an even share of each window",
    )
    return {
        "pixel": rasterize(draw_weights(*drawing, signed=ghost)),
        "close_up": rasterize(draw_weights(*drawing, box=grid.box_of(weights), signed=ghost)),
        "received": rasterize(received),
    }


def describe_part(attention: LayerAttention, choice: Choice) -> str:
    """Name the head and the query of a choice.

    Args:
        attention: attention of a layer.
        choice: the part of it.
    """
    heads, queries = attention.num_heads, attention.num_queries
    part = f"mean of {heads} heads" if choice.head is None else f"head {choice.head}"
    if heads == 1:
        part = "one head"
    if queries == 1:
        return part
    return f"{part}, " + (
        f"mean of {queries} queries" if choice.query is None else f"query {choice.query}"
    )


def describe_input(view: View, steps: Sequence[str]) -> str:
    """Say how the network's input differs from the photograph.

    Args:
        view: a photograph and the network's input.
        steps: names of the steps of the pipeline between loading and packing.

    Returns:
        One or more sentences.
    """
    photograph = view.photograph
    text = [f"{photograph.name} has {_size(photograph.file_size)} pixels."]
    start = photograph.image.shape[:2]
    if start != photograph.file_size:
        text.append(f"This page scaled it to {_size(start)}.")
    done = []
    if view.seen_size != start:
        names = [name.lower() for name in steps]
        crops = any("crop" in name for name in names)
        (height, width), (seen_height, seen_width) = start, view.seen_size
        even = abs(seen_height * width / (height * seen_width) - 1) < 0.05
        if any(word in name for name in names for word in ("resize", "scale", "efficientnet")):
            done.append("scaled" if even or crops else "scaled out of proportion")
        if crops:
            done.append("cropped")
        done = done or ["changed"]
        by = f" by {', '.join(steps)}" if steps else ""
        text.append(
            f"The network sees a picture of {_size(view.seen_size)}, {' and '.join(done)}{by}."
        )
    else:
        text.append("The network sees all of it, in this size.")
    if view.image.shape[:2] != view.seen_size:
        padded = _size(view.image.shape[:2])
        text.append(f"It is padded to {padded}; the padding is black here.")
    return " ".join(text)


def _size(size: tuple[int, ...]) -> str:
    """Width and height, as people write them."""
    return f"{size[1]}x{size[0]}"


def _backgrounds(sample: Any, tasks: Sequence[str], size: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The prediction of each task in colours, if it covers the image that the network sees."""
    drawn = {}
    for name in tasks:
        data = sample.get(TASKS[name].pred_field)
        if data is not None and tuple(data.data.shape[-2:]) == tuple(size):
            drawn[name] = colour_map(name, data.data.detach().cpu().numpy())
    return drawn

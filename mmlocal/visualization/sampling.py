"""The positions that one pixel of a task reads in the maps of all tasks, collected and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlocal.layers import DeformableAttention, InterTaskAttention
from mmlocal.visualization.figures import as_grey, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL = 3.0  # width in inches
_AREA = 260.0  # of the marker with the highest weight, in square points


@dataclass(frozen=True)
class Samples:
    """The positions that one query of a layer reads, and their weights.

    Args:
        positions: ``(heads, levels, tasks, points, 2)``, float32, x and y as fractions of the width
            and height of a map.
        weights: ``(heads, levels, tasks, points)``, float32. They sum to 1 for each head.
        sizes: height and width of the maps, one for each level.
    """

    positions: Tensor
    weights: Tensor
    sizes: list[tuple[int, int]]


def find_sampling_layers(model: nn.Module) -> dict[str, InterTaskAttention]:
    """Find the layers of a model in which the pixels of tasks read the maps of all tasks.

    Args:
        model: any model.

    Returns:
        Layers by name.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, InterTaskAttention)
    }


@contextmanager
def collect_samples(
    layers: Mapping[str, InterTaskAttention], task: int, place: tuple[float, float]
) -> Iterator[dict[str, Samples]]:
    """Collect what one pixel reads while the model runs. Hooks exist only in the context.

    Args:
        layers: layers by name, as :func:`find_sampling_layers` returns them.
        task: index of the task to which the pixel belongs, in the order of the head.
        place: x and y of the pixel, as fractions of the width and height of the network's input.

    Yields:
        A dict by the same names, which the layers fill, for the first image of the batch. If a
        layer runs again, its new samples replace the old ones.
    """
    collected: dict[str, Samples] = {}
    handles = []
    for name, layer in layers.items():

        def hook(
            attention: Any, args: tuple, output: Any, name: str = name, tasks: int = layer.num_tasks
        ) -> None:
            collected[name] = _samples_of(attention, args, tasks, task, place)

        handles.append(layer.attention.register_forward_hook(hook))
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _samples_of(
    attention: DeformableAttention,
    args: tuple,
    tasks: int,
    task: int,
    place: tuple[float, float],
) -> Samples:
    """Compute what one query reads, from the arguments of the attention's ``forward``."""
    queries, _, points, shapes = args
    height, width = shapes[0]
    column, row = (
        min(int(part * size), size - 1) for part, size in zip(place, (width, height), strict=True)
    )
    query = (task * height + row) * width + column
    positions, weights = attention.sampled_positions(
        queries[:1, query : query + 1], points[:1, query : query + 1], shapes
    )
    maps = (len(shapes) // tasks, tasks)  # levels outside, tasks inside
    return Samples(
        positions[0, 0].unflatten(1, maps).float().cpu(),
        weights[0, 0].unflatten(1, maps).float().cpu(),
        list(shapes[::tasks]),
    )


def draw_samples(
    samples: Samples,
    image: np.ndarray,
    tasks: Sequence[str],
    task: str,
    place: tuple[float, float],
    title: str,
    backgrounds: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Draw the positions that one pixel reads, in the maps of all tasks.

    A panel shows one map: tasks are columns, levels are rows. A circle is a position. Its area and
    its colour are the weight, and all panels have one colour scale. A cross marks the pixel itself.

    Args:
        samples: what the pixel reads.
        image: ``(h, w, 3)`` uint8 in RGB, as the network sees it.
        tasks: names of the tasks, in the order of the head.
        task: task to which the pixel belongs.
        place: x and y of the pixel, as fractions of the width and height of ``image``.
        title: title of the whole figure.
        backgrounds: picture of each task's prediction, to draw the positions on; ``None`` for the
            image in grey.

    Returns:
        A matplotlib figure, to save.
    """
    from matplotlib.colors import Normalize

    height, width = image.shape[:2]
    levels, number = samples.weights.shape[1:3]
    panel_height = _PANEL * height / width + 0.35
    figure = new_figure(number * _PANEL + 0.9, levels * panel_height + 0.4, dpi=110)
    axes = figure.subplots(levels, number, squeeze=False)
    grey = np.repeat(as_grey(image)[..., None], 3, axis=-1)
    highest = float(samples.weights.max())
    norm = Normalize(0, highest)
    heads = len(samples.weights)
    for level in range(levels):
        for index, name in enumerate(tasks):
            axis = axes[level, index]
            axis.axis("off")
            # Pale, so that the circles stand out.
            shown = 0.55 * (backgrounds or {}).get(name, grey) + 0.45 * 255
            axis.imshow(shown.astype(np.uint8), extent=(0, width, height, 0))
            weights = samples.weights[:, level, index].flatten().numpy()
            x, y = (samples.positions[:, level, index].flatten(0, 1).numpy() * (width, height)).T
            order = np.argsort(weights)
            circles = axis.scatter(
                x[order],
                y[order],
                s=_AREA * weights[order] / max(highest, 1e-9),
                c=weights[order],
                cmap="viridis_r",
                norm=norm,
                edgecolors="black",
                linewidths=0.4,
            )
            own = name == task
            axis.plot(
                place[0] * width,
                place[1] * height,
                marker="+",
                color="red" if own else "black",
                markersize=13 if own else 8,
                markeredgewidth=2 if own else 1,
            )
            axis.set(xlim=(0, width), ylim=(height, 0))
            rows, columns = samples.sizes[level]
            share = 100 * weights.sum() / heads
            axis.set_title(f"{name}, {rows}x{columns}: {share:.1f} % of the weight", fontsize=8)
    figure.suptitle(title, fontsize=10)
    bar = figure.colorbar(circles, ax=axes, aspect=30, pad=0.01)
    bar.set_label("weight of a position within its head", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure

"""Pictures of the local attention of a layer.

Source:
    Learned Queries for Efficient Local Attention, Arar et al. 2022, appendix A, which shows QnA.
    The same pictures of other layers, and the pictures of ghost heads, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mmlocal.layers import HasGhostHead
from mmlocal.visualization.attention import LayerAttention, enlarge, tile_kernels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

# The picture of a ghost head has a row for each of the first heads, with some of its channels.
_GHOST_HEADS, _GHOST_CHANNELS = 2, 3

_COLUMNS = 4
_PANEL = 2.6  # inches
_DPI = (120, 400)  # least and most
_PIXELS_PER_TAP = 3  # wanted, within the limits of _DPI


def draw_received(
    maps: Tensor, titles: Sequence[Sequence[str]], title: str, image: np.ndarray
) -> Figure:
    """Draw the attention that positions receive on top of the image, next to the image itself.

    Args:
        maps: ``(M, N, h, w)``, float, of the size of the image. Each of the ``M`` groups begins a
            row. All maps have one colour scale, which leaves out 0.5 % of the values at either end.
        titles: title of each map, ``M`` sequences of ``N``.
        title: title of the whole figure.
        image: ``(h, w, 3)`` uint8 in RGB.

    Returns:
        A matplotlib figure, to save.
    """
    from matplotlib.colors import Normalize

    groups, number = maps.shape[:2]
    aspect = image.shape[1] / image.shape[0]
    figure, first, axes = _grid(groups, number, aspect, title, first=True)
    first.imshow(image)
    first.set_title("image", fontsize=9)
    grey = image @ np.array([0.299, 0.587, 0.114])
    norm = Normalize(*np.quantile(maps, (0.005, 0.995)))
    for axis, values, name in _flat(axes, maps.numpy(), titles):
        axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
        drawn = axis.imshow(values, cmap="inferno", norm=norm, alpha=0.65)
        axis.set_title(name, fontsize=9)
    bar = _colour_bar(figure, drawn, "sum over all windows that hold the position")
    if bar.solids is not None:  # the scale would inherit the transparency of the maps
        bar.solids.set_alpha(1)
    return figure


def draw_kernels(
    kernels: Tensor,
    titles: Sequence[Sequence[str]],
    title: str,
    label: str,
    signed: bool = False,
) -> Figure:
    """Draw the ``k x k`` kernels of all windows side by side.

    Args:
        kernels: ``(M, N, k**2, H, W)``, float. Each of the ``M`` groups begins a row. All kernels
            have one colour scale.
        titles: title of each panel, ``M`` sequences of ``N``.
        title: title of the whole figure.
        label: label of the colour scale.
        signed: whether there are negative values. ``False``: the scale follows the square root. It
            leaves out 0.5 % of the values at either end, and zeros, which QnA has outside the map.
            ``True``: 0 is white, and the scale leaves out the 3 % of the values furthest from it.
            Otherwise one high weight in each window would hide all other weights.

    Returns:
        A matplotlib figure, to save.
    """
    from matplotlib.colors import Normalize, PowerNorm

    tiles = tile_kernels(kernels).numpy()
    groups, number, height, width = tiles.shape
    dpi = np.clip(_PIXELS_PER_TAP * width / _PANEL, *_DPI)
    figure, _, axes = _grid(groups, number, width / height, title, dpi)
    if signed:
        limit = np.quantile(np.abs(tiles), 0.97)
        style = dict(cmap="RdBu_r", norm=Normalize(-limit, limit))
    else:
        low, high = np.quantile(tiles[tiles > 0], (0.005, 0.995))
        style = dict(cmap="inferno", norm=PowerNorm(0.5, low, high, clip=True))
    for axis, values, name in _flat(axes, tiles, titles):
        drawn = axis.imshow(values, interpolation_stage="data", **style)
        axis.set_title(name, fontsize=9)
    _colour_bar(figure, drawn, label)
    return figure


def draw_layer(
    name: str,
    layer: nn.Module,
    attention: LayerAttention,
    max_heads: int,
    image: np.ndarray,
    input_size: tuple[int, int],
) -> dict[str, Figure]:
    """Draw the attention of one layer to the first image of a batch.

    Args:
        name: name of the layer, for the titles.
        layer: the layer itself. A ghost head adds a picture of its filters.
        attention: the attention of the layer, as
            :func:`~mmlocal.visualization.attention.collect_attention` yields it.
        max_heads: largest number of heads to draw.
        image: ``(h, w, 3)`` uint8 in RGB.
        input_size: height and width in pixels of the network's input: the image, padded at the
            bottom and right.

    Returns:
        Matplotlib figures by kind, of ``received``, ``kernels`` and, for a ghost head, ``ghost``.
    """
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
    if isinstance(layer, HasGhostHead):
        figures["ghost"] = _draw_ghost(name, layer, maps[0], layer.v_dims // total)
    return figures


def _draw_ghost(name: str, layer: HasGhostHead, attn: Tensor, width: int) -> Figure:
    """Draw some heads: the attention, and the filters of some of the head's ``width`` channels."""
    panels, titles = [], []
    for head in range(min(_GHOST_HEADS, len(attn))):
        channels = [head * width + i for i in range(min(_GHOST_CHANNELS, width))]
        panels.append(torch.cat([attn[head : head + 1], layer.ghost_filters(attn, channels)]))
        titles.append([f"head {head}: attention", *(f"filter of channel {c}" for c in channels)])
    title = f"{name}: filters after the ghost head, of each window"
    return draw_kernels(torch.stack(panels), titles, title, "weight", signed=True)


def _grid(
    groups: int,
    number: int,
    aspect: float,
    title: str,
    dpi: float = _DPI[0],
    first: bool = False,
) -> tuple[Figure, Axes, np.ndarray]:
    """Make a figure with ``groups`` rows of axes. With ``first``, a column before them is free.

    Returns:
        The figure, the first axis of all, and ``(groups, axes)`` without the free column.
    """
    # This canvas needs no display, and leaves the caller's pyplot alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, number)
    rows = groups * -(-number // columns)
    size = ((columns + first) * (_PANEL + 0.05) + 1, rows * (_PANEL / aspect + 0.3) + 0.3)
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns + first, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(title, fontsize=11)
    return figure, axes[0, 0], axes[:, int(first) :].reshape(groups, -1)


def _flat(axes: np.ndarray, panels: np.ndarray, titles: Sequence[Sequence[str]]) -> Iterator[tuple]:
    for group in zip(axes, panels, titles, strict=True):
        yield from zip(*group, strict=False)  # the last row of a group may have axes to spare


def _colour_bar(figure: Figure, drawn: ScalarMappable, label: str) -> Colorbar:
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(
        drawn,
        ax=figure.axes,
        aspect=8 * figure.get_size_inches()[1],
        extend="both",
        extendfrac=0.02,
        pad=0.01,
        ticks=MaxNLocator(5),
    )
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return bar

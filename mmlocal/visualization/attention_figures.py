"""Pictures of the local attention of layers.

Source:
    Learned Queries for Efficient Local Attention, Arar et al. 2022, appendix A, which shows the
    attention received and the kernels of QnA. The overview and the pictures of other layers and of
    ghost heads are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmlocal.layers import HasGhostHead
from mmlocal.visualization.attention import LayerAttention, enlarge, tile_kernels, token_size
from mmlocal.visualization.figures import (
    as_grey,
    colour_bar,
    grid,
    show_frame,
    show_image,
    show_over,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# An image, the size of the network's input, and the centre of the enlarged region.
_Where: TypeAlias = tuple[np.ndarray, tuple[int, int], tuple[int, int] | None]
# The picture of a ghost head has a row for each of the first heads, with some of its channels.
_GHOST_HEADS, _GHOST_CHANNELS = 2, 3
# Label of the colour scale of attention received, by whether the border effect is divided out.
_UNITS = {True: "received (1 = even share)", False: "received (sum)"}
# Windows along each side of the enlarged region.
_REGION = 8


def representatives(attention: Mapping[str, LayerAttention]) -> dict[str, str]:
    """Choose one layer of each run of like layers: the last one.

    Layers are alike if they have the same class, the same window and maps of the same sizes.

    Args:
        attention: attention by the names of layers, in the order of the model.

    Returns:
        Name of each chosen layer -> its label in a picture.
    """
    runs: list[list[str]] = []
    kinds = {
        name: (type(item.layer), item.window_size, item.map_size, item.output_size)
        for name, item in attention.items()
    }
    for name, kind in kinds.items():
        if not runs or kinds[runs[-1][-1]] != kind:
            runs.append([])
        runs[-1].append(name)
    return {run[-1]: f"last of {len(run)}" if len(run) > 1 else "" for run in runs}


def draw_overview(
    layers: Mapping[str, LayerAttention],
    notes: Mapping[str, str],
    title: str,
    image: np.ndarray,
    input_size: tuple[int, int],
    max_heads: int = 4,
    mean: bool = True,
) -> Figure:
    """Draw the attention that positions receive, with a row for each layer.

    The columns are the image with one window of the layer, the mean of all heads, and some heads.
    Each row has a colour scale.

    Args:
        layers: attention by the names of layers, to the first image of a batch.
        notes: an addition to the label of a row, by the name of the layer.
        title: title of the whole figure.
        image: ``(h, w, 3)`` uint8 in RGB.
        input_size: height and width in pixels of the network's input: the image, padded at the
            bottom and right.
        max_heads: largest number of heads to draw of each layer.
        mean: as for :meth:`~mmlocal.visualization.attention.LayerAttention.received`.

    Returns:
        A matplotlib figure, to save.
    """
    prefix = _common_prefix(list(layers))
    heads = min(max_heads, max(item.num_heads for item in layers.values()))
    figure, axes = grid(len(layers), 2 + heads, image, title)
    for row, (name, attention) in zip(axes, layers.items(), strict=True):
        shown = attention.received(mean)[0].mean(0)
        panels = torch.cat([shown.mean(0, True), shown[:max_heads]])
        panels = enlarge(panels[None], input_size, image.shape[:2])[0]
        show_image(row[0], image)
        show_frame(row[0], _window_frame(attention, input_size))
        row[0].set_ylabel("\n".join(filter(None, (
            name.removeprefix(prefix), describe(attention), notes.get(name, "")
        ))), fontsize=7)  # fmt: skip
        drawn = show_over(row[1:], panels.numpy(), as_grey(image))
        colour_bar(figure, drawn, row, _UNITS[mean])
    titles = ["image, one window", "mean of heads", *(f"head {head}" for head in range(heads))]
    for column, text in zip(axes.T, titles, strict=True):  # the first rows may have fewer heads
        next(axis for axis in column if axis.images).set_title(text, fontsize=9)
    return figure


def draw_received(
    title: str,
    attention: LayerAttention,
    max_heads: int,
    image: np.ndarray,
    input_size: tuple[int, int],
    mean: bool = True,
) -> Figure:
    """Draw the attention that positions receive from each query and head of one layer.

    Args:
        title: title of the whole figure.
        attention: attention of the layer, to the first image of a batch.
        max_heads: largest number of heads to draw.
        image: ``(h, w, 3)`` uint8 in RGB.
        input_size: as for :func:`draw_overview`.
        mean: as for :meth:`~mmlocal.visualization.attention.LayerAttention.received`.

    Returns:
        A matplotlib figure, to save. All maps have one colour scale.
    """
    shown = attention.received(mean)[0]
    shown = torch.cat([shown.mean(1, True), shown[:, :max_heads]], dim=1)
    queries, columns = shown.shape[:2]
    figure, axes = grid(queries, 1 + columns, image, title)
    panels = enlarge(shown, input_size, image.shape[:2]).flatten(0, 1).numpy()
    show_image(axes[0, 0], image)
    axes[0, 0].set_title("image, one window", fontsize=9)
    show_frame(axes[0, 0], _window_frame(attention, input_size))
    drawn = show_over(axes[:, 1:].flat, panels, as_grey(image))
    titles = ["mean of heads", *(f"head {head}" for head in range(columns - 1))]
    for axis, text in zip(axes[0, 1:], titles, strict=True):
        axis.set_title(text, fontsize=9)
    if queries > 1:
        for query, axis in enumerate(axes[:, 1]):
            axis.set_ylabel(f"query {query}", fontsize=9)
    colour_bar(figure, drawn, axes, _UNITS[mean])
    return figure


def draw_kernels(
    kernels: Tensor,
    window_size: tuple[int, int],
    titles: Sequence[Sequence[str]],
    labels: Sequence[str],
    title: str,
    label: str,
    image: np.ndarray,
    input_size: tuple[int, int],
    center: tuple[int, int] | None = None,
    signed: bool = False,
) -> Figure:
    """Draw kernels of windows: their mean, and the kernels of a region side by side.

    Args:
        kernels: ``(M, N, taps, H, W)``, float. Each of the ``M`` groups has two rows: the means,
            and the regions. The rows of one kind have one colour scale.
        window_size: height and width of a kernel, in taps.
        titles: title of each panel, ``M`` sequences of ``N``.
        labels: label of each group, ``M`` strings; empty for none.
        title: title of the whole figure.
        label: label of the colour scales.
        image: ``(h, w, 3)`` uint8 in RGB. A frame shows the region.
        input_size: as for :func:`draw_overview`.
        center: y and x of the centre of the region, in pixels; ``None`` for the image's centre.
        signed: whether there are negative values. ``False``: the scale of regions follows the
            square root. It leaves out 0.5 % of the values at either end, and zeros, which QnA has
            outside the map. ``True``: 0 is white, and the scale leaves out the 3 % of the values
            furthest from it. Otherwise one high weight in each window would hide all other weights.

    Returns:
        A matplotlib figure, to save.
    """
    groups, number, _, *map_size = kernels.shape
    pixels = [token_size(p, t) for p, t in zip(input_size, map_size, strict=True)]
    places = center or (image.shape[0] // 2, image.shape[1] // 2)
    first, last = zip(*(
        _around(place // pixel, side)
        for place, pixel, side in zip(places, pixels, map_size, strict=True)
    ), strict=True)  # fmt: skip
    region = kernels[..., first[0] : last[0], first[1] : last[1]]
    tiles = tile_kernels(region, window_size).numpy()
    means = kernels.mean((3, 4)).unflatten(2, window_size).numpy()

    figure, axes = grid(2 * groups, 1 + number, tiles[0, 0], title, panel=2.2)
    show_image(axes[0, 0], image)
    top, left, bottom, right = (
        place * pixel for place, pixel in zip((*first, *last), pixels * 2, strict=True)
    )
    show_frame(axes[0, 0], [top, left, bottom, right])
    show_image(axes[1, 0], image[top:bottom, left:right])
    axes[0, 0].set_title("image, with the region below", fontsize=9)
    counts = f"{last[0] - first[0]}x{last[1] - first[1]} windows"
    styles = (_style(means, signed, power=False), _style(tiles, signed, power=True))
    lines = "black" if signed else "white"
    for group in range(groups):
        rows = axes[2 * group : 2 * group + 2]
        for axis, text in zip(rows[0, 1:], titles[group], strict=True):
            axis.set_title(text, fontsize=9)
        for row, values, style, what in zip(
            rows, (means, tiles), styles, ("mean of all windows", f"{counts} in the frame"),
            strict=True,
        ):  # fmt: skip
            for axis, panel in zip(row[1:], values[group], strict=True):
                drawn = axis.imshow(panel, interpolation="nearest", **style)
            row[1].set_ylabel("\n".join(filter(None, (labels[group], what))), fontsize=8)
            colour_bar(figure, drawn, row, label)
        for axis in rows[1, 1:]:  # lines between windows
            height, width = tiles.shape[2:]
            axis.hlines(np.arange(window_size[0], height, window_size[0]) - 0.5, -0.5, width - 0.5,
                        color=lines, linewidth=0.6)  # fmt: skip
            axis.vlines(np.arange(window_size[1], width, window_size[1]) - 0.5, -0.5, height - 0.5,
                        color=lines, linewidth=0.6)  # fmt: skip
    return figure


def draw_tiles(title: str, attention: LayerAttention, max_heads: int) -> Figure:
    """Draw the kernels of all windows side by side, as far as the size of a picture allows.

    Args:
        title: title of the whole figure.
        attention: attention of the layer, to the first image of a batch.
        max_heads: largest number of heads to draw.

    Returns:
        A matplotlib figure, to save. All kernels have one colour scale, which follows the square
        root. Where the picture has fewer pixels than there are taps, taps are missing.
    """
    maps = _writers(attention)[:, :max_heads]
    tiles = tile_kernels(maps, attention.window_size).numpy()
    queries, heads = tiles.shape[:2]
    figure, axes = grid(queries, heads, tiles[0, 0], title, panel=6)
    style = _style(tiles, signed=False, power=True)
    for query in range(queries):
        for head in range(heads):
            axis = axes[query, head]
            drawn = axis.imshow(tiles[query, head], interpolation="nearest", **style)
            axis.set_title(f"head {head}" if query == 0 else "", fontsize=9)
        if queries > 1:
            axes[query, 0].set_ylabel(f"query {query}", fontsize=9)
    colour_bar(figure, drawn, axes, "attention")
    return figure


def draw_layer(
    name: str,
    attention: LayerAttention,
    kinds: Sequence[str],
    max_heads: int,
    image: np.ndarray,
    input_size: tuple[int, int],
    center: tuple[int, int] | None = None,
    mean: bool = True,
    note: str = "",
) -> dict[str, Figure]:
    """Draw the attention of one layer to the first image of a batch.

    Args:
        name: name of the layer, for the titles.
        attention: the attention of the layer, as
            :func:`~mmlocal.visualization.attention.collect_attention` yields it.
        kinds: some of ``received``, ``kernels``, ``ghost`` and ``tiles``. A layer without a ghost
            head has no picture ``ghost``.
        max_heads: largest number of heads to draw.
        image: ``(h, w, 3)`` uint8 in RGB.
        input_size: as for :func:`draw_overview`.
        center: as for :func:`draw_kernels`.
        mean: as for :meth:`~mmlocal.visualization.attention.LayerAttention.received`.
        note: second line of the titles, such as the weights and the image.

    Returns:
        Matplotlib figures by kind.
    """
    figures = {}
    where: _Where = (image, input_size, center)
    layer = f"{name} ({describe(attention)})"
    windows = f"{len(attention.rows)}x{len(attention.columns)}"
    titles = {
        "received": f"{layer}: attention that each position receives",
        "kernels": f"{layer}: attention of each window",
        "ghost": f"{layer}: filters of each window after the ghost head",
        "tiles": f"{layer}: attention of all {windows} windows",
    }
    titles = {kind: f"{title}\n{note}".rstrip() for kind, title in titles.items()}
    maps = _writers(attention)[:, :max_heads]
    queries, heads = maps.shape[:2]
    if "received" in kinds:
        figures["received"] = draw_received(
            titles["received"], attention, max_heads, image, input_size, mean
        )
    if "kernels" in kinds:
        names = [[f"head {head}" for head in range(heads)]] * queries
        labels = [""] if queries == 1 else [f"query {query}" for query in range(queries)]
        shape = (attention.window_size, names, labels, titles["kernels"], "attention")
        figures["kernels"] = draw_kernels(maps, *shape, *where)
    if "ghost" in kinds and isinstance(attention.layer, HasGhostHead):
        width = attention.layer.v_dims // attention.num_heads
        figures["ghost"] = _draw_ghost(titles["ghost"], attention, maps[0], width, where)
    if "tiles" in kinds:
        figures["tiles"] = draw_tiles(titles["tiles"], attention, max_heads)
    return figures


def _draw_ghost(
    title: str, attention: LayerAttention, attn: Tensor, width: int, where: _Where
) -> Figure:
    """Draw some heads: the attention, and the filters of some of the head's ``width`` channels."""
    panels, titles, labels = [], [], []
    layer: Any = attention.layer
    for head in range(min(_GHOST_HEADS, len(attn))):
        channels = [head * width + i for i in range(min(_GHOST_CHANNELS, width))]
        panels.append(torch.cat([attn[head : head + 1], layer.ghost_filters(attn, channels)]))
        titles.append(["attention", *(f"filter of channel {c}" for c in channels)])
        labels.append(f"head {head}")
    size = attention.window_size
    return draw_kernels(
        torch.stack(panels), size, titles, labels, title, "weight", *where, signed=True
    )


def _writers(attention: LayerAttention) -> Tensor:
    """Maps ``(queries, heads, taps, H_out, W_out)`` of the first image.

    Where each tap has a query, the middle one stands for all.
    """
    maps = attention.maps[0]
    middle = len(maps) // 2
    return maps[middle : middle + 1] if attention.query_places == "taps" else maps


def describe(attention: LayerAttention) -> str:
    """Describe a layer in a few words, such as ``"ELSA 7x7, 28x28 map"``."""
    height, width = attention.map_size
    return f"{type(attention.layer).__name__} {_window(attention)}, {height}x{width} map"


def _window(attention: LayerAttention) -> str:
    return f"{attention.window_size[0]}x{attention.window_size[1]}"


def _window_frame(attention: LayerAttention, input_size: tuple[int, int]) -> list[int]:
    """Top, left, bottom and right of one window near the centre, in pixels."""
    frame = []
    for tokens, taps, pixels in zip(
        attention.map_size, (attention.rows, attention.columns), input_size, strict=True
    ):
        seen = taps[len(taps) // 2]
        seen = seen[seen >= 0]
        width = token_size(pixels, tokens)
        frame.append((int(seen.min()) * width, (int(seen.max()) + 1) * width))
    return [frame[0][0], frame[1][0], frame[0][1], frame[1][1]]


def _around(place: int, side: int) -> tuple[int, int]:
    """First and last window of a region around a place, within a map."""
    first = max(0, min(place - _REGION // 2, side - _REGION))
    return first, min(first + _REGION, side)


def _style(values: np.ndarray, signed: bool, power: bool) -> dict[str, Any]:
    """Colour map and scale of kernels."""
    from matplotlib.colors import Normalize, PowerNorm

    if signed:
        limit = max(np.quantile(np.abs(values), 0.97), 1e-12)
        return dict(cmap="RdBu_r", norm=Normalize(-limit, limit))
    positive = values[values > 0]
    low, high = np.quantile(positive, (0.005, 0.995)) if positive.size else (0.0, 1.0)
    norm = PowerNorm(0.5, low, high, clip=True) if power else Normalize(low, high)
    return dict(cmap="inferno", norm=norm)


def _common_prefix(names: Sequence[str]) -> str:
    """The modules that all names begin with, such as ``"backbone."``, but not ``"stages."``."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1 or level[0] == "stages":
            break
        shared.append(level[0])
    return "".join(f"{part}." for part in shared) if len(names) > 1 else ""

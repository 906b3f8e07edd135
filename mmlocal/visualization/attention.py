"""Pictures of local attention: what each position receives, and how each window attends.

Source:
    Learned Queries for Efficient Local Attention, Arar et al. 2022, appendix A. It shows QnA; here
    ELSA is drawn in the same way, and the filters that its ghost head makes of the attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers import ELSA, QnA, UpsampleQnA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

LAYERS = (ELSA, QnA, UpsampleQnA)

_COLUMNS = 4
_PANEL = 2.6  # inches
_DPI = (120, 400)  # least and most
_PIXELS_PER_TAP = 3  # if _DPI allows it


def received(
    attn: Tensor,
    kernel_size: int,
    stride: int,
    padding: int,
    map_size: tuple[int, int],
    dilation: int = 1,
) -> Tensor:
    """Sum the attention that each token receives from all windows that hold it.

    Args:
        attn: ``(..., kernel_size**2, H_out, W_out)``, float; taps in row-major order.
        kernel_size: width of the windows, in taps.
        stride: distance between windows, in tokens.
        padding: tokens by which windows stick out of the map.
        map_size: height and width of the map, in tokens.
        dilation: distance between taps, in tokens.

    Returns:
        ``(..., H, W)``, dtype of ``attn``. What falls outside the map is lost.

    Raises:
        RuntimeError: ``attn`` has not as many taps or windows as the others say.
    """
    columns = attn.reshape(-1, attn.shape[-3], attn.shape[-2] * attn.shape[-1])
    sums = F.fold(columns, map_size, kernel_size, dilation=dilation, padding=padding, stride=stride)
    return sums.reshape(*attn.shape[:-3], *map_size)


def tile_kernels(attn: Tensor) -> Tensor:
    """Lay the ``k x k`` attention kernels of all windows side by side, without overlap.

    Args:
        attn: ``(..., k**2, H, W)``, any dtype; taps in row-major order.

    Returns:
        ``(..., H * k, W * k)``.

    Raises:
        ValueError: the number of taps is no square.
    """
    side = math.isqrt(attn.shape[-3])
    if side**2 != attn.shape[-3]:
        raise ValueError(f"attn must have a square number of taps, got {attn.shape[-3]}")
    return F.pixel_shuffle(attn, side).squeeze(-3)


def ghost_filters(layer: ELSA, attn: Tensor, channels: Sequence[int]) -> Tensor:
    """Compute the filters that the ghost head of ``layer`` makes of its attention.

    ``ghost_mul[c]**lam * attn[head of c] + gamma * ghost_add[c]``, the sum that the layer weights
    the values of channel ``c`` by.

    Args:
        layer: with ``v_dims`` channels, each of which belongs to one head.
        attn: ``(..., heads, kernel_size**2, H, W)``: ``layer.attention_maps(x)``.
        channels: of the values, to compute filters for.

    Returns:
        ``(..., len(channels), kernel_size**2, H, W)``, dtype of ``attn``.

    Source:
        ELSA, Zhou et al. 2021, section 5, eq. 7 and 8.
    """
    width = layer.v_dims // attn.shape[-4]
    filters = attn[..., [channel // width for channel in channels], :, :, :]
    if layer.ghost_mul is not None:
        filters = filters * _taps(layer.ghost_mul, channels, attn) ** layer.lam
    if layer.ghost_add is not None:
        filters = filters + layer.gamma * _taps(layer.ghost_add, channels, attn)
    return filters


def _taps(ghost: Tensor, channels: Sequence[int], like: Tensor) -> Tensor:
    return ghost.detach()[list(channels)].flatten(1)[..., None, None].to(like)


def enlarge(maps: Tensor, input_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Enlarge maps to the image that they are of, by bilinear interpolation.

    Args:
        maps: ``(M, N, H, W)``, float.
        input_size: height and width in pixels of what the network saw: the image, padded at the
            bottom and right.
        image_size: height and width of the image itself.

    Returns:
        ``(M, N, *image_size)``.

    Note:
        A backbone that halves its maps rounds odd sizes up, so the last tokens may reach beyond
        ``input_size``. A token is taken to be as many pixels wide as the next power of two tells.
    """
    size = [
        tokens * 2 ** math.ceil(math.log2(max(pixels / tokens, 1)))
        for pixels, tokens in zip(input_size, maps.shape[2:], strict=True)
    ]
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return maps[..., : image_size[0], : image_size[1]]


@dataclass(frozen=True)
class LayerAttention:
    """Attention of one layer.

    Args:
        maps: ``(B, queries, heads, kernel_size**2, H_out, W_out)``, float32 or float64, on the
            CPU; ELSA has one query.
        map_size: height and width of the layer's input, in tokens.
        kernel_size: as in :func:`received`, as are the others.
    """

    maps: Tensor
    map_size: tuple[int, int]
    kernel_size: int
    stride: int
    padding: int
    dilation: int

    def received(self) -> Tensor:
        """``(B, queries, heads, H, W)``; see :func:`received`."""
        return received(
            self.maps, self.kernel_size, self.stride, self.padding, self.map_size, self.dilation
        )


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of local attention in ``model``, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}


@contextmanager
def collect_attention(
    layers: Mapping[str, nn.Module],
) -> Iterator[dict[str, LayerAttention]]:
    """Collect the attention of layers while a model that holds them runs.

    Args:
        layers: as :func:`find_layers` returns them.

    Yields:
        A dict that each call of a layer writes its attention to, in place of that of the call
        before. The layers are as they were once the context is left.
    """
    collected: dict[str, LayerAttention] = {}
    handles = []
    for name, layer in layers.items():

        def hook(layer, args, kwargs, output, name=name):
            with torch.no_grad():
                collected[name] = _attention_of(layer, *args, **kwargs)

        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def _attention_of(layer: nn.Module, x: Tensor, *args, **kwargs) -> LayerAttention:
    maps = layer.attention_maps(x, *args, **kwargs)
    maps = maps.to("cpu", torch.promote_types(maps.dtype, torch.float32))
    map_size = tuple(x.shape[1:3])
    if isinstance(layer, ELSA):
        padding = layer.kernel_size // 2 * layer.dilation
        return LayerAttention(
            maps.unsqueeze(1), map_size, layer.kernel_size, 1, padding, layer.dilation
        )
    return LayerAttention(maps, map_size, layer.kernel_size, layer.stride, layer.padding, 1)


def draw_received(
    maps: Tensor, titles: Sequence[Sequence[str]], title: str, image: np.ndarray
) -> Figure:
    """Draw the attention that positions receive over the image, beside the image itself.

    Args:
        maps: ``(M, N, h, w)``, float, of the size of the image: ``M`` groups, each of which begins
            a row. All have one colour scale, which leaves out the half per cent at either end.
        titles: one for each map.
        title: of the whole figure.
        image: ``(h, w, 3)`` uint8 in RGB.

    Returns:
        A matplotlib figure, to save.
    """
    from matplotlib.colors import Normalize

    figure, first, axes = _grid(*maps.shape[:2], image.shape[1] / image.shape[0], title, first=True)
    first.imshow(image)
    first.set_title("image", fontsize=9)
    grey = image @ np.array([0.299, 0.587, 0.114])
    norm = Normalize(*np.quantile(maps, (0.005, 0.995)))
    for axis, values, name in _flat(axes, maps.numpy(), titles):
        axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
        drawn = axis.imshow(values, cmap="inferno", norm=norm, alpha=0.65)
        axis.set_title(name, fontsize=9)
    bar = _colour_bar(figure, drawn, "sum over all windows that hold the position")
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
        kernels: ``(M, N, k**2, H, W)``, float: ``M`` groups, each of which begins a row. All have
            one colour scale.
        titles: one for each of the ``M * N``.
        title: of the whole figure.
        label: of the colour scale.
        signed: whether there are negative values. If not, the scale follows the square root, and
            leaves out the half per cent at either end and zeros, which QnA has outside the map. If
            so, 0 is white, and the scale leaves out the 3 % furthest from it: a high weight in each
            window would hide all others.

    Returns:
        A matplotlib figure, to save.
    """
    from matplotlib.colors import Normalize, PowerNorm

    tiles = tile_kernels(kernels).numpy()
    height, width = tiles.shape[2:]
    dpi = np.clip(_PIXELS_PER_TAP * width / _PANEL, *_DPI)
    figure, _, axes = _grid(*tiles.shape[:2], width / height, title, dpi)
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


def _grid(
    groups: int,
    number: int,
    aspect: float,
    title: str,
    dpi: float = _DPI[0],
    first: bool = False,
) -> tuple[Figure, Axes, np.ndarray]:
    """A figure, its first axis, and ``groups`` rows of axes; with ``first``, beside that one."""
    # Without a display, and without touching the caller's pyplot.
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

    style = dict(extend="both", extendfrac=0.02, pad=0.01, ticks=MaxNLocator(5))
    bar = figure.colorbar(drawn, ax=figure.axes, aspect=8 * figure.get_size_inches()[1], **style)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return bar

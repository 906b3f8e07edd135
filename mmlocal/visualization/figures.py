"""Empty figures of matplotlib, grids of panels for pictures of attention, and files of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_PANEL = 1.8  # inches
_DPI = 105
_MOST_PIXELS = 6e6


def new_figure(
    width: float,
    height: float,
    layout: Literal["constrained"] | None = "constrained",
    dpi: float | None = None,
) -> Figure:
    """Make a figure. It needs no display, and leaves the user's pyplot alone.

    Args:
        width: inches.
        height: inches.
        layout: layout engine of matplotlib; ``None`` for axes at fixed places.
        dpi: pixels per inch; ``None`` for matplotlib's default.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def grid(
    rows: int, columns: int, image: np.ndarray, title: str, panel: float = _PANEL
) -> tuple[Figure, np.ndarray]:
    """Make a figure with a grid of axes without ticks. Large figures have a lower resolution.

    Args:
        rows: number of rows.
        columns: number of columns.
        image: an array with the shape of the panels, ``(h, w, ...)``.
        title: title of the whole figure.
        panel: length of the short side of a panel, in inches.

    Returns:
        The figure, and its axes ``(rows, columns)``.
    """
    # The short side of a panel is at least as long as the labels.
    width = panel * min(max(1, image.shape[1] / image.shape[0]), 2)
    height = panel * min(max(1, image.shape[0] / image.shape[1]), 2)
    size = (columns * (width + 0.08) + 1.4, rows * (height + 0.12) + 0.6)
    dpi = min(_DPI, (_MOST_PIXELS / (size[0] * size[1])) ** 0.5)
    figure = new_figure(*size, dpi=dpi)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=10, wrap=True)
    return figure, axes


def as_grey(image: np.ndarray) -> np.ndarray:
    """The brightness ``(h, w)`` of an image ``(h, w, 3)`` in RGB."""
    return image @ np.array([0.299, 0.587, 0.114])


def show_image(axis: Axes, image: np.ndarray) -> None:
    """Show an image ``(h, w, 3)`` uint8 in RGB."""
    axis.imshow(image)


def show_frame(axis: Axes, frame: Sequence[float]) -> None:
    """Draw a rectangle, given by its top, left, bottom and right in pixels of the image."""
    from matplotlib.patches import Rectangle

    top, left, bottom, right = frame
    for colour, width in (("black", 3), ("white", 1.5)):
        axis.add_patch(
            Rectangle((left - 0.5, top - 0.5), right - left, bottom - top,
                      fill=False, edgecolor=colour, linewidth=width)
        )  # fmt: skip


def show_over(
    axes: Iterable[Axes], panels: np.ndarray, grey: np.ndarray, signed: bool = False
) -> ScalarMappable:
    """Show maps over a grey image, with one colour scale.

    Args:
        axes: an axis for each map, or more.
        panels: ``(N, h, w)`` float.
        grey: ``(h, w)``, from 0 to 255.
        signed: whether there are negative values. The scale then has 0 in its middle. Otherwise it
            leaves out 0.5 % of the values at either end.

    Returns:
        A map, for the colour bar.
    """
    from matplotlib.colors import Normalize

    norm = Normalize(*np.quantile(panels, (0.005, 0.995)))
    if signed:
        limit = max(np.quantile(np.abs(panels), 0.995), 1e-12)
        norm = Normalize(-limit, limit)
    for axis, values in zip(axes, panels, strict=False):
        axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
        cmap = "RdBu_r" if signed else "inferno"
        drawn = axis.imshow(values, cmap=cmap, norm=norm, alpha=0.65)
    return drawn


def colour_bar(figure: Figure, drawn: ScalarMappable, axes: Any, label: str) -> None:
    """Draw a colour bar to the right of some axes. Its arrows stand for the values left out.

    Args:
        figure: the figure.
        drawn: a map with the colours.
        axes: the axes that the bar belongs to.
        label: short label.
    """
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(
        drawn,
        ax=axes,
        fraction=0.05,
        shrink=0.95,
        aspect=22,
        extend="both",
        extendfrac=0.03,
        pad=0.01,
        ticks=MaxNLocator(4),
    )
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=7)
    if bar.solids is not None:  # the scale would inherit the transparency of the maps
        bar.solids.set_alpha(1)


def rasterize(figure: Figure) -> np.ndarray:
    """Turn a figure of :func:`new_figure` into a picture ``(h, w, 3)``, uint8 in RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure in its resolution, as JPEG or as PNG. The suffix of ``path`` decides."""
    from PIL import Image

    image = Image.fromarray(rasterize(figure))
    if path.suffix == ".png":
        image.save(path)
    else:
        image.save(path, quality=82)

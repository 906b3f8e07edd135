"""Maps of attention on top of a picture, for the page that shows attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from torch import Tensor

from mmlocal.visualization.attention import token_size
from mmlocal.visualization.figures import as_grey, new_figure

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_WIDTH, _DPI = 4.0, 200  # of a figure: inches, dots per inch
_LEAST_SIDE = 480  # pixels of a picture to click on


@dataclass(frozen=True)
class Grid:
    """The tokens of a map over the picture that the network sees.

    Args:
        tokens: height and width of the map, in tokens.
        input_size: height and width of the network's input, in pixels.

    Note:
        The last tokens may reach beyond the input, because backbones round odd sizes up.
    """

    tokens: tuple[int, int]
    input_size: tuple[int, int]

    @property
    def step(self) -> tuple[int, int]:
        """Height and width of a token, in pixels."""
        height, width = map(token_size, self.input_size, self.tokens)
        return height, width

    def token_of(self, pixel: tuple[int, int]) -> tuple[int, int]:
        """Row and column of the token that a pixel ``(x, y)`` belongs to."""
        height, width = self.step
        x, y = pixel
        return min(y // height, self.tokens[0] - 1), min(x // width, self.tokens[1] - 1)

    def spread(self, values: Tensor | np.ndarray) -> np.ndarray:
        """Give each pixel the value of its token: ``(H, W)`` to the size of the input."""
        height, width = self.step
        spread = np.asarray(values).repeat(height, 0).repeat(width, 1)
        bottom, right = (
            max(0, size - side) for size, side in zip(self.input_size, spread.shape, strict=True)
        )
        spread = np.pad(spread, ((0, bottom), (0, right)))  # a map that is scaled down unevenly
        return spread[: self.input_size[0], : self.input_size[1]]

    def box_of(self, values: Tensor | np.ndarray) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of all values but 0, in pixels, with a margin of a token.

        Returns:
            The box, with at most the size of the input; ``None`` if all values are 0.
        """
        rows, columns = np.nonzero(np.asarray(values))
        if not len(rows):
            return None
        height, width = self.step
        left, top = (columns.min() - 1) * width, (rows.min() - 1) * height
        right, bottom = (columns.max() + 2) * width, (rows.max() + 2) * height
        return (
            max(int(left), 0),
            max(int(top), 0),
            min(int(right), self.input_size[1]),
            min(int(bottom), self.input_size[0]),
        )


def draw_weights(
    image: np.ndarray,
    weights: np.ndarray,
    title: str,
    pixel: tuple[int, int],
    box: tuple[int, int, int, int] | None = None,
    signed: bool = False,
) -> Figure:
    """Draw the weights by which one pixel reads a picture, on top of the picture in grey.

    Args:
        image: ``(h, w, 3)`` uint8 in RGB.
        weights: ``(h, w)`` float, of the size of the picture. Pixels of 0 stay clear.
        title: title of the figure, one or more lines.
        pixel: x and y of the pixel, which gets a cross.
        box: left, top, right and bottom of the part to draw; ``None`` for the whole picture.
        signed: whether there may be negative weights. ``True``: 0 is white, blue is below.

    Returns:
        A matplotlib figure, to save.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    highest = float(np.abs(weights).max()) or 1.0
    norm = Normalize(-highest if signed else 0, highest)
    name = "RdBu_r" if signed else "inferno"
    colours = colormaps[name](norm(weights))
    # Strong weights cover the picture. It shows through weak ones, and through white if signed.
    strength = np.abs(weights) / highest
    colours[..., 3] = np.where(weights == 0, 0, 0.35 + 0.55 * np.sqrt(strength))
    return _draw(image, colours, title, name, norm, "weight of a position", pixel, box)


def draw_sums(image: np.ndarray, sums: np.ndarray, title: str, label: str) -> Figure:
    """Draw the attention that positions receive, on top of the picture in grey.

    Args:
        image: ``(h, w, 3)`` uint8 in RGB.
        sums: ``(h, w)`` float, of the size of the picture. The scale leaves out 0.5 % of the values
            at either end.
        title: title of the figure, one or more lines.
        label: label of the colour scale.

    Returns:
        A matplotlib figure, to save.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    low, high = (float(value) for value in np.quantile(sums, (0.005, 0.995)))
    norm = Normalize(low, high if high > low else low + 1e-6)
    colours = colormaps["inferno"](norm(sums))
    colours[..., 3] = 0.65
    return _draw(image, colours, title, "inferno", norm, label)


def _draw(
    image: np.ndarray,
    colours: np.ndarray,
    title: str,
    name: str,
    norm: Normalize,
    label: str,
    pixel: tuple[int, int] | None = None,
    box: tuple[int, int, int, int] | None = None,
) -> Figure:
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import MaxNLocator

    height, width = image.shape[:2]
    left, top, right, bottom = box or (0, 0, width, height)
    aspect = (bottom - top) / (right - left)
    figure = new_figure(_WIDTH, float(np.clip(_WIDTH * aspect, 1.5, 8.0)) + 1, dpi=_DPI)
    axis = figure.subplots()
    axis.axis("off")
    place = (0, width, height, 0)
    axis.imshow(
        as_grey(image), cmap="gray", vmin=0, vmax=255, extent=place, interpolation="nearest"
    )
    axis.imshow(colours, extent=place, interpolation="nearest")
    if pixel is not None:
        x, y = pixel[0] + 0.5, pixel[1] + 0.5
        axis.plot(x, y, "+", color="white", markersize=15, markeredgewidth=4)
        axis.plot(x, y, "+", color="limegreen", markersize=14, markeredgewidth=2)
    axis.set(xlim=(left, right), ylim=(bottom, top))
    axis.set_title(title, fontsize=10)
    bar = figure.colorbar(
        ScalarMappable(norm, name),
        ax=axis,
        location="bottom",
        pad=0.02,
        aspect=40,
        ticks=MaxNLocator(5),
    )
    bar.set_label(label, fontsize=10)
    bar.ax.tick_params(labelsize=10)
    return figure


def enlargement(size: tuple[int, int]) -> int:
    """Factor by which a small picture is enlarged, so that one can click on its pixels.

    Args:
        size: height and width of the picture, in pixels.
    """
    return max(1, round(_LEAST_SIDE / max(size)))


def enlarge_pixels(image: np.ndarray) -> np.ndarray:
    """Enlarge a small picture by :func:`enlargement`, without a change of its pixels.

    Args:
        image: ``(h, w, 3)`` uint8.
    """
    factor = enlargement(image.shape[:2])
    return image.repeat(factor, 0).repeat(factor, 1)


def mark_pixel(image: np.ndarray, pixel: tuple[int, int]) -> np.ndarray:
    """Enlarge a small picture by :func:`enlargement`, and mark one pixel with a ring.

    Args:
        image: ``(h, w, 3)`` uint8 in RGB.
        pixel: x and y of the pixel.

    Returns:
        The picture, enlarged and marked.
    """
    factor, marked = enlargement(image.shape[:2]), enlarge_pixels(image)
    x, y = (int((part + 0.5) * factor) for part in pixel)
    radius = max(marked.shape[:2]) // 32
    for colour, thickness in (((255, 255, 255), 7), ((20, 150, 20), 3)):
        cv2.circle(marked, (x, y), radius, colour, thickness, cv2.LINE_AA)
    return marked

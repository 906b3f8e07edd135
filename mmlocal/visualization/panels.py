"""Sheets of labelled pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmlocal.visualization.figures import new_figure

_DPI = 100
_LINE = 0.36  # inches for a line of text
_LETTER = 0.14  # inches of a letter beside the pictures
_GAP = 0.05
_JPEG = {"quality": 85, "optimize": True}


@dataclass(frozen=True)
class Panel:
    """A picture of a sheet.

    Args:
        image: ``(H, W, 3)`` uint8 in RGB.
        title: text above the picture; a sheet has room for it if any of its pictures has a title.
        colour: colour of the title.
        texts: x and y in pixels of the image, and a short text to write there.
    """

    image: np.ndarray
    title: str = ""
    colour: str = "black"
    texts: Sequence[tuple[float, float, str]] = field(default=())


def draw_sheet(
    rows: Sequence[tuple[str, Sequence[Panel]]],
    out: str | Path,
    legend: Mapping[str, Sequence[int]] | None = None,
    title: str = "",
    width: int = 1600,
) -> None:
    """Draw rows of pictures of one shape, with a name beside each row.

    Args:
        rows: name and pictures of each row. A row without pictures leaves a gap.
        out: picture to write. The suffix decides the format.
        legend: name -> RGB of each colour to explain below the pictures.
        title: title above the pictures.
        width: pixels of the sheet.

    Raises:
        ValueError: there is no picture.
    """
    columns = max((len(panels) for _, panels in rows), default=0)
    if not columns:
        raise ValueError("rows must hold at least one picture")
    height, length = next(panels[0].image.shape[:2] for _, panels in rows if panels)
    inches = width / _DPI
    letters = max(1, int(inches / columns * height / length / _LETTER))
    names = [textwrap.wrap(name, letters, break_long_words=False) for name, _ in rows]
    longest = max(len(line) for name in names for line in ["", *name])
    size = 18 * min(1.0, letters / max(longest, 1))
    label = _LINE * max(map(len, names)) * size / 18
    side = (inches - label - _GAP) / columns - _GAP
    high = side * height / length
    titles = [panel.title for _, panels in rows for panel in panels if panel.title]
    heading = 0.1 + 0.2 * max(len(text.splitlines()) for text in titles) if titles else 0.0
    steps = [high + heading + _GAP if panels else 2 * _GAP for _, panels in rows]
    per_line = max(1, int(inches / 1.6))
    lines = -(-len(legend or ()) // per_line)
    below = _LINE * lines + _GAP
    above = _LINE + 0.1 if title else _GAP
    total = above + sum(steps) + below
    figure = new_figure(inches, total, layout=None)
    figure.suptitle(title, y=1 - 0.1 / total, va="top", fontsize=15)
    top = total - above
    for (_, panels), name, step in zip(rows, names, steps, strict=True):
        bottom = top - heading - high
        for column, panel in enumerate(panels):
            left = label + _GAP + column * (side + _GAP)
            box = (left / inches, bottom / total, side / inches, high / total)
            _draw_panel(figure.add_axes(box), panel)
        place = (label / 2 / inches, (bottom + high / 2) / total)
        words: dict[str, Any] = dict(rotation=90, ha="center", va="center", fontsize=size)
        figure.text(*place, "\n".join(name), **words)
        top -= step
    if legend:
        _explain(figure, legend, -(-len(legend) // lines))
    compression = _JPEG if Path(out).suffix in (".jpg", ".jpeg") else None
    figure.savefig(out, dpi=_DPI, pil_kwargs=compression)


def contact_sheet(images: Sequence[str | Path], out: str | Path, columns: int = 1) -> None:
    """Tile pictures of one size into one, row by row.

    Args:
        images: picture files, all of one height and width.
        out: picture to write.
        columns: pictures per row.

    Raises:
        ValueError: ``images`` is empty, or one of them cannot be read.
        OSError: ``out`` cannot be written.
    """
    if not images:
        raise ValueError("images must name at least one picture")
    tiles = []
    for path in images:
        tile = cv2.imread(str(path))
        if tile is None:
            raise ValueError(f"images: {path} cannot be read")
        tiles.append(cv2.copyMakeBorder(tile, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255,) * 3))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    if not cv2.imwrite(str(out), np.vstack(rows)):
        raise OSError(f"out={str(out)!r} cannot be written")


def _draw_panel(axis: Any, panel: Panel) -> None:
    axis.imshow(panel.image, interpolation="antialiased", aspect="auto")
    axis.set_axis_off()
    axis.set_title(panel.title, fontsize=12, color=panel.colour, pad=4)
    for x, y, text in panel.texts:
        box = dict(facecolor="white", alpha=0.75, edgecolor="none", pad=1)
        axis.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box)


def _explain(figure: Any, legend: Mapping[str, Sequence[int]], columns: int) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor="black", linewidth=0.5, label=name)
        for name, (r, g, b) in legend.items()
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=16,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.1,
    )

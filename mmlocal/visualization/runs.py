"""Pictures of training runs: curves, a sheet of drawn predictions, and a comparison of models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def plot_curves(
    scalars: str | Path,
    out: str | Path,
    losses: Sequence[str],
    metrics: Sequence[str],
    scale: float = 1.0,
    title: str | None = None,
) -> None:
    """Plot losses and metrics of a run side by side over the iterations.

    Args:
        scalars: ``vis_data/scalars.json`` of MMEngine's ``LocalVisBackend``.
        out: picture to write. The suffix decides the format.
        losses: names of losses, to plot on the left.
        metrics: names of metrics, to plot on the right.
        scale: factor that brings the metrics to [0, 1].
        title: title above both plots; ``None`` for none.

    Raises:
        ValueError: the log holds none of ``losses``.
    """
    entries = [json.loads(line) for line in Path(scalars).read_text().splitlines()]
    figure = _figure(11, 4)
    left, right = figure.subplots(1, 2)
    step = 0
    curves: dict[str, tuple[list, list]] = {name: ([], []) for name in (*losses, *metrics)}
    for entry in entries:
        # A validation entry may count epochs, so it is drawn at the last training iteration.
        step = entry["step"] if "loss" in entry else step
        for name, (steps, values) in curves.items():
            if name in entry:
                steps.append(step)
                values.append(entry[name] * (scale if name in metrics else 1))
    if not any(curves[name][0] for name in losses):
        raise ValueError(f"scalars must hold one of the losses {tuple(losses)}, got {scalars}")
    figure.suptitle(title or "")
    for axis, names, what in ((left, losses, "training loss"), (right, metrics, "validation")):
        for name in names:
            axis.plot(*curves[name], label=name, marker="o" if axis is right else None)
        axis.set(xlabel="iteration", title=what, ylim=(0, None if axis is left else 1))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(out, dpi=120)


def plot_spread(
    points: Mapping[str, tuple[float, float, float]],
    out: str | Path,
    xlabel: str,
    ylabel: str,
) -> None:
    """Plot one point with an error bar for each of several models, with numbers that a list names.

    Args:
        points: name of each model -> its x, its y, and the length of its error bar on either side.
        out: picture to write. The suffix decides the format.
        xlabel: label of the x axis.
        ylabel: label of the y axis.

    Raises:
        ValueError: ``points`` is empty.
    """
    if not points:
        raise ValueError("points must name at least one model")
    figure = _figure(10, 5.5)
    axis = figure.subplots()
    for number, (name, (x, y, spread)) in enumerate(points.items()):
        colour, marker = f"C{number % 10}", "os^Dv"[number // 10 % 5]
        axis.errorbar(
            x, y, spread, color=colour, marker=marker, capsize=3, label=f"{number + 1}  {name}"
        )
        offset = (5, -13 if number % 2 else 5)  # below or above, as neighbours may be close
        axis.annotate(
            str(number + 1), (x, y), offset, textcoords="offset points", color=colour, weight="bold"
        )
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
    axis.margins(0.08)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(out, dpi=120)


def contact_sheet(images: Sequence[str | Path], out: str | Path, columns: int = 2) -> None:
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


def _figure(width: float, height: float) -> Any:
    """A figure of this size in inches. It needs no display, and leaves the user's pyplot alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure

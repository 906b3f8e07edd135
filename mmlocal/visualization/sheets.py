"""Sheets of a test: good examples, the first images, and images with one class each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from mmlocal.visualization.masks import Mark, by_size, draw_marks, inner_point
from mmlocal.visualization.panels import Panel, draw_sheet

_GREEN, _RED = "#1a7f37", "#c01c28"


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class Picture:
    """An image with masks, or with one class for all of it.

    Args:
        image: ``(H, W, 3)`` uint8 in RGB.
        truth: true objects or classes.
        prediction: predicted objects or classes.
        classes: true class, predicted class, and its score; ``None`` for images with masks.
    """

    image: np.ndarray
    truth: Sequence[Mark] = field(default=())
    prediction: Sequence[Mark] = field(default=())
    classes: tuple[int, int, float] | None = None


def draw_examples(
    pictures: Sequence[Picture],
    out: str | Path,
    palette: Sequence[Sequence[int]],
    legend: Mapping[str, Sequence[int]],
) -> None:
    """Draw three rows: images, their truth and their prediction, without scores.

    Args:
        pictures: at least one image with masks.
        out: picture to write. The suffix decides the format.
        palette: RGB of each class.
        legend: name -> RGB of each class to explain.
    """
    scale = _scale(pictures[0])
    size = (pictures[0].image.shape[1] * scale, pictures[0].image.shape[0] * scale)
    rows = [
        ("image", [Panel(cv2.resize(p.image, size)) for p in pictures]),
        ("truth", [Panel(draw_marks(p.image, p.truth, palette, scale)) for p in pictures]),
        (
            "prediction",
            [Panel(draw_marks(p.image, p.prediction, palette, scale)) for p in pictures],
        ),
    ]
    draw_sheet(rows, out, legend)


def draw_first(
    pictures: Sequence[Picture],
    out: str | Path,
    palette: Sequence[Sequence[int]],
    legend: Mapping[str, Sequence[int]],
    threshold: float,
) -> None:
    """Draw truth and prediction of the first images of a test, with scores in percent.

    Args:
        pictures: at least one image with masks.
        out: picture to write. The suffix decides the format.
        palette: RGB of each class.
        legend: name -> RGB of each class to explain.
        threshold: lowest score that is shown, for the title.
    """
    scale = _scale(pictures[0])
    rows: list[tuple[str, list[Panel]]] = []
    for begin in range(0, len(pictures), 4):
        part = pictures[begin : begin + 4]
        truth = [Panel(draw_marks(p.image, p.truth, palette, scale)) for p in part]
        prediction = [
            Panel(draw_marks(p.image, p.prediction, palette, scale), texts=_scores(p, scale))
            for p in part
        ]
        rows += [("truth", truth), ("prediction", prediction), ("", [])]
    shown = any(panel.texts for _, panels in rows for panel in panels)
    note = f", scores from {threshold:.0%} up, in percent" if shown else ""
    title = f"The first {len(pictures)} images of the test{note}"
    draw_sheet(rows[:-1], out, legend, title, width=1000)


def draw_classes(pictures: Sequence[Picture], out: str | Path, names: Sequence[str]) -> None:
    """Draw images with their predicted class above: green if it is right, else red.

    Args:
        pictures: at least one image with classes.
        out: picture to write. The suffix decides the format.
        names: names of the classes.
    """
    panels = []
    for picture in pictures:
        true, found, score = picture.classes or (0, 0, 0.0)
        right = true == found
        text = f"{names[found]} {score:.0%}"
        title = text if right else f"{text}\ntruth: {names[true]}"
        size = tuple(length * 3 for length in picture.image.shape[1::-1])
        image = cv2.resize(picture.image, size, interpolation=cv2.INTER_CUBIC)
        panels.append(Panel(image, title, _GREEN if right else _RED))
    rows = [("", panels[begin : begin + 8]) for begin in range(0, len(panels), 8)]
    title = f"Predictions for {len(pictures)} images: green is right, red is wrong"
    draw_sheet(rows, out, title=title)


def _scale(picture: Picture) -> int:
    """Factor that makes a picture about 400 pixels wide."""
    return max(1, round(400 / picture.image.shape[1]))


def _scores(picture: Picture, scale: int) -> list[tuple[float, float, str]]:
    """Scores of the predictions, each on the part of its mask that others do not hide."""
    texts = []
    hidden = np.zeros(picture.image.shape[:2], bool)
    for mark in reversed(by_size(picture.prediction)):
        if mark.score is not None:
            seen = mark.mask & ~hidden
            x, y = inner_point(seen if seen.any() else mark.mask)
            texts.append(((x + 0.5) * scale, (y + 0.5) * scale, f"{mark.score * 100:.0f}"))
        hidden |= mark.mask
    return texts

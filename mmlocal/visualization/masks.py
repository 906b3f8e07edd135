"""Masks in the colours of their classes on a pale grey image, and how well two sets agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

_FILL = 0.7  # share of the colour in a mask
_DARK = 0.6  # brightness of a contour, of the brightness of the mask's colour


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class Mark:
    """An object, or all pixels of a class.

    Args:
        mask: ``(H, W)`` bool.
        label: number of the class.
        score: confidence of a prediction in [0, 1]; ``None`` for the truth.
    """

    mask: np.ndarray
    label: int
    score: float | None = None


def draw_marks(
    image: np.ndarray, marks: Sequence[Mark], palette: Sequence[Sequence[int]], scale: int = 2
) -> np.ndarray:
    """Draw masks in the colours of their classes on a pale grey image.

    Args:
        image: ``(H, W, 3)`` uint8 in RGB.
        marks: objects or classes. Small ones are drawn last.
        palette: RGB of each class.
        scale: whole factor to enlarge the picture by.

    Returns:
        ``(H * scale, W * scale, 3)`` uint8 in RGB.
    """
    size = (image.shape[1] * scale, image.shape[0] * scale)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
    pale = np.repeat((grey * 0.3 + 165)[..., None], 3, axis=-1)
    drawn = pale.copy()
    for mark in by_size(marks):
        mask = cv2.resize(mark.mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
        colour = np.asarray(palette[mark.label], np.float32)
        drawn[mask] = pale[mask] * (1 - _FILL) + colour * _FILL
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, (255, 255, 255), 2 * scale)
        cv2.drawContours(drawn, outlines, -1, (colour * _DARK).tolist(), scale)
    return drawn.round().clip(0, 255).astype(np.uint8)


def by_size(marks: Sequence[Mark]) -> list[Mark]:
    """Sort marks in the order in which they are drawn: large ones first.

    Args:
        marks: objects or classes.
    """
    return sorted(marks, key=lambda mark: -int(mark.mask.sum()))


def inner_point(mask: np.ndarray) -> tuple[int, int]:
    """Find the pixel of a mask that is farthest from its border.

    Args:
        mask: ``(H, W)`` bool, with at least one pixel.

    Returns:
        x and y.
    """
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x) - 1, int(y) - 1


def agreement(truth: Sequence[Mark], prediction: Sequence[Mark]) -> float:
    """Panoptic quality of one image: overlap of matched marks, and how many have a match.

    A predicted mark and a true one match if they have the same class and more than half of their
    union in common.

    Args:
        truth: true marks.
        prediction: predicted marks.

    Returns:
        Sum of the matches' intersection over union, over the mean number of marks; in [0, 1], and 1
        if there are none.

    Source:
        Panoptic Segmentation, Kirillov et al. 2019, equation 1.
    """
    total = 0.0
    free = list(truth)
    for mark in prediction:
        for candidate in free:
            if candidate.label == mark.label:
                union = int((candidate.mask | mark.mask).sum())
                overlap = int((candidate.mask & mark.mask).sum()) / max(union, 1)
                if overlap > 0.5:
                    total += overlap
                    free.remove(candidate)
                    break
    number = (len(truth) + len(prediction)) / 2
    return total / number if number else 1.0

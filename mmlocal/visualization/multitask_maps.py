"""Colours for the maps of multi-task dense prediction, and figures of several maps."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from mmlocal.tasks import IGNORE, TASKS

IGNORED_COLOUR = (105, 105, 105)
# Background, head, torso, upper arms, lower arms, upper legs, lower legs.
_PARTS = ((0, 0, 0), (214, 39, 40), (255, 187, 40), (44, 160, 44),
          (23, 190, 207), (31, 119, 180), (148, 103, 189))  # fmt: skip
_TEXT_HEIGHT = 22
_GAP = 4


def colour_map(
    task: str,
    values: np.ndarray,
    palette: Sequence[Sequence[int]] | None = None,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Colour one map of labels or predictions.

    Classes get the colours of a palette, and depth the colours of Turbo, near ones in blue. A
    normal ``n`` becomes the colour ``(n + 1) / 2``. Boundaries are dark on white, and salient
    regions white on black. Ignored pixels of a label map are grey.

    Args:
        task: name of the task, a key of :data:`mmlocal.tasks.TASKS`.
        values: ``(1, H, W)`` or ``(H, W)``, integer labels, depth in metres, or probabilities;
            ``(3, H, W)`` for normals.
        palette: RGB of each class, for ``"semseg"`` and ``"human_parts"``; ``None`` for colours of
            our own.
        limits: nearest and furthest depth in metres; ``None`` for the limits of the map.

    Returns:
        ``(H, W, 3)`` uint8 in RGB.

    Raises:
        ValueError: ``task`` is unknown, or ``values`` has another number of channels.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    values = np.asarray(values)
    values = values[None] if values.ndim == 2 else values
    channels = 3 if task == "normals" else 1
    if values.ndim != 3 or len(values) != channels:
        raise ValueError(
            f"values of task {task!r} must have shape ({channels}, H, W), got {values.shape}"
        )
    if task == "normals":
        colours = np.moveaxis(values.clip(-1, 1) + 1, 0, -1) * 127.5
    elif task == "depth":
        colours = _colour_depth(values[0], limits or depth_limits(values))
    elif task in ("semseg", "human_parts"):
        labels = values[0].astype(np.int64)
        table = _table(palette or (_PARTS if task == "human_parts" else ()), labels)
        colours = table[labels]
    else:
        strength = values[0].astype(np.float64).clip(0, 1)
        grey = 255 * (1 - strength if task == "edge" else strength)
        colours = np.repeat(grey[..., None], 3, axis=-1)
    colours = colours.round().astype(np.uint8)
    colours[(values == IGNORE).any(axis=0)] = IGNORED_COLOUR
    return colours


def depth_limits(depth: np.ndarray) -> tuple[float, float]:
    """Find the nearest and furthest depth of a map.

    Args:
        depth: any shape, metres. Pixels of 0 and 255 do not count.

    Returns:
        Two depths in metres; 0 and 1 if no pixel counts.
    """
    known = depth[(depth > 0) & (depth != IGNORE) & np.isfinite(depth)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def tile_panels(rows: Sequence[Sequence[tuple[str, np.ndarray | None]]]) -> np.ndarray:
    """Lay panels of one size side by side, each below its title.

    Args:
        rows: rows of panels, as many in each row. A panel is a title and an image ``(H, W, 3)``
            uint8, or ``None`` for an empty place. All images have one size.

    Returns:
        ``(height, width, 3)`` uint8. Small panels are enlarged, so that titles fit above them.

    Raises:
        ValueError: there is no image, or the images differ in size.
    """
    sizes = {image.shape[:2] for row in rows for _, image in row if image is not None}
    if len(sizes) != 1:
        raise ValueError(f"rows must hold images of one size, got the sizes {sorted(sizes)}")
    height, width = sizes.pop()
    factor = max(1, -(-200 // width))
    height, width = height * factor, width * factor
    lines = []
    for row in rows:
        panels = []
        for title, image in row:
            panel = np.full((_TEXT_HEIGHT + height + _GAP, width + _GAP, 3), 255, np.uint8)
            if image is not None:
                size = (width, height)
                enlarged = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
                panel[_TEXT_HEIGHT : _TEXT_HEIGHT + height, :width] = enlarged
            place = (2, _TEXT_HEIGHT - 7)
            cv2.putText(
                panel, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
            )
            panels.append(panel)
        lines.append(np.hstack(panels))
    return np.vstack(lines)


def _colour_depth(depth: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    share = np.nan_to_num((depth.astype(np.float64) - low) / max(high - low, 1e-6)).clip(0, 1)
    bgr = cv2.applyColorMap((share * 255).round().astype(np.uint8), cv2.COLORMAP_TURBO)
    return bgr[..., ::-1].copy()


def _table(palette: Sequence[Sequence[int]], labels: np.ndarray) -> np.ndarray:
    """Colour of each label up to the largest one. Labels beyond the palette get other colours."""
    number = max(IGNORE, int(labels.max(initial=0))) + 1
    table = np.empty((number, 3), np.float64)
    for label in range(number):  # hues a golden ratio apart, so that neighbours differ
        table[label] = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 0.95 - 0.2 * (label % 3))
    table *= 255
    table[: len(palette)] = np.asarray(palette, np.float64).reshape(-1, 3)
    return table

"""Boxes of objects beside the label maps of several tasks.

mmcv's ``LoadAnnotations`` loads the boxes: ``gt_bboxes`` ``(N, 4)`` float32, which are x and y of
two corners in pixels, and ``gt_bboxes_labels`` ``(N,)`` int64.
"""

from __future__ import annotations

import numpy as np

_BOXES, _LABELS = "gt_bboxes", "gt_bboxes_labels"


def move_boxes(results: dict, factor: float = 1.0, left: int = 0, top: int = 0) -> None:
    """Scale the boxes of an image, if there are any, and move them.

    Args:
        results: image and labels; this function changes them.
        factor: factor of all coordinates.
        left: pixels to move to the right, after scaling.
        top: pixels to move down, after scaling.
    """
    if _BOXES in results:
        shift = np.array((left, top, left, top), dtype=np.float32)
        results[_BOXES] = results[_BOXES] * np.float32(factor) + shift


def flip_boxes(results: dict) -> None:
    """Flip the boxes of an image horizontally, if there are any.

    Args:
        results: image and labels; this function changes them.
    """
    if _BOXES in results:
        boxes = results[_BOXES].copy()
        boxes[:, [0, 2]] = results["img"].shape[1] - boxes[:, [2, 0]]
        results[_BOXES] = boxes


def clip_boxes(results: dict) -> None:
    """Cut the boxes off at the border of the image, and drop boxes that are outside.

    A box stays if at least one pixel of its width and of its height is inside.

    Args:
        results: image and labels; this function changes them.
    """
    if _BOXES in results:
        height, width = results["img"].shape[:2]
        boxes = np.clip(results[_BOXES], 0, np.array((width, height) * 2, dtype=np.float32))
        inside = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
        results[_BOXES] = boxes[inside]
        if _LABELS in results:
            results[_LABELS] = results[_LABELS][inside]

"""Annotation formats of a scene."""

from typing import Any

import numpy as np

from mmlocal.datasets.shapes.render import Scene


def coco_annotations(scene: Scene) -> list[dict[str, Any]]:
    """Make COCO annotations of the visible parts of objects, without ``id`` and ``image_id``.

    Args:
        scene: the picture and its objects.

    Returns:
        One annotation per object, in the order of ``scene.shapes``.
    """
    annotations = []
    for index, shape in enumerate(scene.shapes):
        mask = scene.mask(index)
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        annotations.append(
            {
                "category_id": shape.category + 1,
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": mask_to_rle(mask),
            }
        )
    return annotations


def semantic_map(scene: Scene) -> np.ndarray:
    """Make the label map of a scene.

    Args:
        scene: the picture and its objects.

    Returns:
        ``(H, W)`` uint8: 0 for the background, else the index into ``CLASSES`` plus 1.
    """
    labels = np.array([shape.category + 1 for shape in scene.shapes] + [0], dtype=np.uint8)
    return labels[scene.owner]  # BACKGROUND is -1, the last entry


def mask_to_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a mask by COCO's run lengths, without compression, so that plain JSON can hold it.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        ``size``, which is ``[H, W]``, and ``counts``: the lengths of the runs of equal pixels, down
        the columns from left to right. The first run is outside the mask and may be empty.
    """
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))  # of all runs but the first
    counts = np.diff(starts, prepend=0, append=pixels.size)
    return {"size": list(mask.shape), "counts": counts.tolist()}

"""Count what is in the label maps of a multi-task data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile

from mmlocal.datasets.transforms.multitask_loading import LoadMultiTaskAnnotations, MarkIgnored
from mmlocal.tasks import IGNORE, TASKS

#: Classes of the tasks whose number of classes is fixed.
FIXED_CLASSES = {"human_parts": 7, "sal": 2, "edge": 2}
_CENTIMETRES = 10_000  # depth beyond this counts as this in the median
# Normals of 8 bits are up to 0.007 off the length 1.
_UNIT = 0.02
_EXAMPLES = 5


@dataclass
class TaskCounts:
    """Counts over the label maps of one task.

    Args:
        images: label maps that were read.
        empty: label maps in which every pixel is ignored.
        valid: pixels with a label.
        ignored: pixels without a label.
        labels: pixels of each label from 0 to 255; of a task with classes only.
        beyond: files with a label that is no class, with these labels; the first few.
        beyond_number: number of such files.
        depths: pixels by depth in whole centimetres; of depth only.
        nearest: least depth in metres.
        furthest: greatest depth in metres.
        with_holes: label maps of depth with a hole.
        not_unit: normals whose length is neither 0 nor 1.
    """

    images: int = 0
    empty: int = 0
    valid: int = 0
    ignored: int = 0
    labels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    beyond: list[str] = field(default_factory=list)
    beyond_number: int = 0
    depths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    nearest: float = np.inf
    furthest: float = 0.0
    with_holes: int = 0
    not_unit: int = 0

    def add(self, other: TaskCounts) -> None:
        """Add the counts of other label maps."""
        for name in ("images", "empty", "valid", "ignored", "beyond_number", "with_holes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.not_unit += other.not_unit
        self.labels = self.labels + other.labels
        self.beyond = (self.beyond + other.beyond)[:_EXAMPLES]
        length = max(len(self.depths), len(other.depths))
        self.depths = sum(
            (np.pad(d, (0, length - len(d))) for d in (self.depths, other.depths)),
            np.zeros(length, np.int64),
        )
        self.nearest = min(self.nearest, other.nearest)
        self.furthest = max(self.furthest, other.furthest)

    def median_depth(self) -> float:
        """The median depth in metres, to a centimetre."""
        sums = np.cumsum(self.depths)
        return int(np.searchsorted(sums, (sums[-1] + 1) // 2)) / 100 if sums.size else 0.0


@dataclass
class Counts:
    """Counts over images and their label maps.

    Args:
        sizes: number of images by height and width.
        tasks: counts by task.
        unusable: reasons by file, of files that cannot be read or do not fit their image.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    tasks: dict[str, TaskCounts] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Add the counts of other images."""
        self.sizes.update(other.sizes)
        for task, counts in other.tasks.items():
            self.tasks.setdefault(task, TaskCounts()).add(counts)
        self.unusable |= other.unusable


def count_images(items: Sequence[dict], classes: dict[str, int]) -> Counts:
    """Read some images and all their label maps, and count what is in them.

    Args:
        items: items of a ``MultiTaskDataset``.
        classes: number of classes by task.
    """
    found = Counts()
    for item in items:
        results, reasons = read_item(item)
        found.unusable |= reasons
        if "img" not in results:
            continue
        found.sizes[results["ori_shape"]] += 1
        for task in item["labels"]:
            if TASKS[task].gt_key in results:
                counts = count_map(task, results[TASKS[task].gt_key], classes.get(task))
                if counts.beyond:
                    counts.beyond = [f"{item['labels'][task]['path']} ({counts.beyond[0]})"]
                found.tasks.setdefault(task, TaskCounts()).add(counts)
    return found


def read_item(item: dict) -> tuple[dict[str, Any], dict[str, str]]:
    """Read an image and its label maps as a pipeline does, and mark the ignored pixels.

    Returns:
        The results of the pipeline, without unusable files, and the reasons by file of those.
    """
    reasons: dict[str, str] = {}
    results: dict[str, Any] = {}
    try:
        load = LoadImageFromFile(color_type="color_ignore_orientation")
        results = load({"img_path": item["img_path"]}) or {}
    except Exception as error:  # a damaged file can fail in any way
        reasons[item["img_path"]] = _one_line(error) or "cannot be read as an image"
        return results, reasons
    for task, file in item["labels"].items():
        try:
            results = LoadMultiTaskAnnotations()(results | {"labels": {task: file}}) or {}
        except (OSError, ValueError) as error:
            reasons[file["path"]] = _one_line(error).removeprefix(f"{file['path']} ")
    return MarkIgnored()(results), reasons


def count_map(task: str, labels: np.ndarray, classes: int | None) -> TaskCounts:
    """Count what is in one label map, after ``MarkIgnored``.

    Args:
        task: name of the task.
        labels: ``(H, W)`` or ``(H, W, 3)``.
        classes: number of classes, if the task has any.
    """
    ignored = (labels == IGNORE).any(axis=-1) if labels.ndim == 3 else labels == IGNORE
    found = TaskCounts(
        images=1,
        empty=int(ignored.all()),
        valid=int((~ignored).sum()),
        ignored=int(ignored.sum()),
    )
    if task == "depth":
        depth = labels[~ignored]
        found.with_holes = int(ignored.any())
        if depth.size:
            found.nearest, found.furthest = float(depth.min()), float(depth.max())
            found.depths = np.bincount((depth * 100).round().clip(max=_CENTIMETRES).astype(int))
    elif task == "normals":
        length = np.linalg.norm(labels[~ignored], axis=-1)
        found.not_unit = int((np.abs(length - 1) > _UNIT).sum())
    else:
        found.labels = np.bincount(labels.ravel(), minlength=IGNORE + 1)
        found.labels[IGNORE] = 0
        beyond = np.flatnonzero(found.labels[classes:]) + (classes or 0)
        if classes is not None and beyond.size:
            found.beyond_number = 1
            found.beyond = [", ".join(map(str, beyond[:_EXAMPLES]))]
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

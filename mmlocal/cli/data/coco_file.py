"""Read the parts of COCO annotation files that the checks need."""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from mmlocal.cli.data.report import shorten

_SAMPLE = 200  # number of images of a file to look for on the disk


class AnnotationError(Exception):
    """A file is not in the format of COCO."""


@dataclass
class CocoFile:
    """Parts of an annotation file that the checks need.

    Args:
        categories: category id -> name, in the order of the file.
        parents: names that other categories give as their ``supercategory``.
        file_names: image id -> file name, for a sample of evenly spread images.
        sizes: image id -> length of the shorter side in pixels.
        images_with: category id -> ids of the images with a box of this category.
        boxes: category id -> number of usable boxes.
        annotations: number of annotations, usable or not.
        errors: mistakes in images and categories.
        faults: mistake in an annotation -> ids of the annotations that have it.
    """

    # Faults that matter only to a pipeline that loads masks.
    NO_MASK: ClassVar[str] = "have no segmentation"
    RUN_LENGTHS: ClassVar[str] = "have a run-length encoded segmentation (RLE)"

    categories: dict[int, str] = field(default_factory=dict)
    parents: set[str] = field(default_factory=set)
    file_names: dict[Any, str] = field(default_factory=dict)
    sizes: dict[Any, float] = field(default_factory=dict)
    images_with: dict[Any, set] = field(default_factory=dict)
    boxes: Counter = field(default_factory=Counter)
    annotations: int = 0
    errors: list[str] = field(default_factory=list)
    faults: dict[str, list[Any]] = field(default_factory=dict)

    def labels(self, classes: tuple[str, ...]) -> dict[int, str]:
        """Category id -> name of the categories in ``classes``, in the order of their labels."""
        return {id_: name for id_, name in self.categories.items() if name in classes}

    @property
    def names(self) -> list[str]:
        """Names to propose as classes, without a parent that has no boxes of its own."""
        return [
            name
            for id_, name in self.categories.items()
            if self.boxes[id_] or name not in self.parents or not self.annotations
        ]


def read_coco(path: str) -> CocoFile:
    """Read an annotation file, unless it was read before.

    Args:
        path: annotation file.

    Raises:
        AnnotationError: the file is not JSON, or not in the format of COCO.
        OSError: the file cannot be opened.
    """
    state = os.stat(path)
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)  # data sets and evaluators name the same file
def _read(path: str, changed: int, size: int) -> CocoFile:
    gc_was_on = gc.isenabled()
    gc.disable()  # it takes most of the time for millions of small objects, and they have no cycles
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        return _summarise(content)
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "is it a whole file?"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise AnnotationError(f"{path} is not valid JSON ({error})") from error
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from error
    except TypeError as error:  # a list where a number or a name is expected
        raise AnnotationError(f"{path}: not in the format of COCO ({error})") from error
    finally:
        if gc_was_on:
            gc.enable()


def _summarise(content: Any) -> CocoFile:
    if not isinstance(content, dict):
        raise AnnotationError("not in the format of COCO: the file holds no JSON object")
    for part in ("images", "categories"):
        if not isinstance(content.get(part), list):
            raise AnnotationError(f"not in the format of COCO: there is no list of {part}")
    found = CocoFile()
    _read_categories(content["categories"], found)
    _read_images(content["images"], found)
    _read_annotations(content.get("annotations") or [], content["images"], found)
    return found


def _entries(entries: list, keys: tuple[str, ...], what: str) -> None:
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            raise AnnotationError(
                f"{what}[{index}] must have {', '.join(keys)}, got {shorten([entry])[:200]}"
            )


def _read_categories(categories: list, found: CocoFile) -> None:
    _entries(categories, ("id", "name"), "categories")
    for kind in ("id", "name"):
        counts = Counter(category[kind] for category in categories)
        if repeated := [value for value, count in counts.items() if count > 1]:
            found.errors.append(f"categories share the {kind} {shorten(repeated)}")
    found.categories = {category["id"]: category["name"] for category in categories}
    found.parents = {
        category["supercategory"]
        for category in categories
        if isinstance(category.get("supercategory"), str)
        and category["supercategory"] != category["name"]
    }


def _read_images(images: list, found: CocoFile) -> None:
    _entries(images, ("id", "file_name", "height", "width"), "images")
    for image in images:
        found.sizes[image["id"]] = min(image["height"], image["width"])
    if len(found.sizes) < len(images):
        counts = Counter(image["id"] for image in images)
        repeated = [id_ for id_, count in counts.items() if count > 1]
        found.errors.append(f"images share the id {shorten(repeated)}")
    step = max(1, len(images) // _SAMPLE)
    found.file_names = {image["id"]: image["file_name"] for image in images[::step][:_SAMPLE]}


def _read_annotations(annotations: list, images: list, found: CocoFile) -> None:
    _entries(annotations, ("id", "image_id", "category_id", "bbox", "area"), "annotations")
    found.annotations = len(annotations)
    bounds = {image["id"]: (image["width"], image["height"]) for image in images}
    seen = set()
    for annotation in annotations:
        category = annotation["category_id"]
        seen.add(annotation["id"])
        fault = None
        if annotation["image_id"] not in bounds:
            fault = "belong to no image of the file"
        elif category not in found.categories:
            fault = "belong to no category of the file"
        elif not annotation.get("ignore"):
            fault = _fault_of_box(annotation, *bounds[annotation["image_id"]])
        if fault is None:
            found.boxes[category] += 1
            mask = annotation.get("segmentation")
            if not mask:
                found.faults.setdefault(found.NO_MASK, []).append(annotation["id"])
            elif isinstance(mask, dict) and not annotation.get("iscrowd"):
                found.faults.setdefault(found.RUN_LENGTHS, []).append(annotation["id"])
        else:
            found.faults.setdefault(fault, []).append(annotation["id"])
        found.images_with.setdefault(category, set()).add(annotation["image_id"])
    if len(seen) < len(annotations):
        counts = Counter(annotation["id"] for annotation in annotations)
        repeated = [id_ for id_, count in counts.items() if count > 1]
        found.errors.append(f"annotations share the id {shorten(repeated)}")


def _fault_of_box(annotation: dict, width: float, height: float) -> str | None:
    """Why mmdet drops a box; ``None`` if it keeps the box."""
    try:
        x, y, w, h = annotation["bbox"]
        area = annotation["area"]
        if not (x == x and y == y and w == w and h == h and area == area):
            return "have a box or area that is not a number"
        if w < 0 or h < 0:
            return "have a box of negative size"
        if w < 1 or h < 1 or area <= 0:
            return "have a box or area below one pixel"
        if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            return "have a box outside their image"
    except (TypeError, ValueError) as error:
        raise AnnotationError(
            f"annotation {annotation['id']} needs a box [x, y, width, height] and an area, got "
            f"{str(annotation['bbox'])[:80]} and {str(annotation['area'])[:80]}"
        ) from error
    return None

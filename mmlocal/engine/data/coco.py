"""Annotation files in the format of COCO."""

from __future__ import annotations

import difflib
import gc
import json
import os
import os.path as osp
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from mmlocal.engine.building import type_name
from mmlocal.engine.data.datasets import DataSet, is_local
from mmlocal.engine.data.report import Findings, shorten

_SAMPLE = 200  # images of a file that are looked for on the disk
# Public data sets hold a few boxes without width, which are dropped without harm.
_HARMLESS = 1e-3


class AnnotationError(Exception):
    """A file that is none in the format of COCO."""


@dataclass
class CocoFile:
    """What the checks need of an annotation file.

    Args:
        categories: id -> name, in the order of the file.
        parents: names that other categories give as their ``supercategory``.
        file_names: of some images, evenly spread.
        sizes: image id -> the shorter side.
        images_with: category id -> ids of the images that have a box of it.
        boxes: number of usable boxes by category id.
        faults: what is wrong with annotations -> how many, with the id of one of them.
    """

    categories: dict[int, str] = field(default_factory=dict)
    parents: set[str] = field(default_factory=set)
    file_names: list[str] = field(default_factory=list)
    sizes: dict[Any, float] = field(default_factory=dict)
    images_with: dict[Any, set] = field(default_factory=dict)
    boxes: Counter = field(default_factory=Counter)
    annotations: int = 0
    errors: list[str] = field(default_factory=list)
    faults: dict[str, list[Any]] = field(default_factory=dict)

    def labels(self, classes: tuple[str, ...]) -> dict[int, str]:
        """Category id -> name of what ``classes`` select, in the order of their labels."""
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
    """Read an annotation file once; only what the checks need stays in memory.

    Raises:
        AnnotationError: the file is not JSON, or not laid out as COCO.
        OSError: it cannot be opened.
    """
    state = os.stat(path)
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)  # data sets and evaluators name the same file
def _read(path: str, changed: int, size: int) -> CocoFile:
    gc_was_on = gc.isenabled()
    gc.disable()  # millions of small objects and no cycles: collecting takes most of the time
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
        raise AnnotationError("not in the format of COCO: the file holds no object")
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
    found.file_names = [image["file_name"] for image in images[::step][:_SAMPLE]]


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
            if not annotation.get("segmentation"):
                found.faults.setdefault("have no segmentation", []).append(annotation["id"])
        else:
            found.faults.setdefault(fault, []).append(annotation["id"])
        found.images_with.setdefault(category, set()).add(annotation["image_id"])
    if len(seen) < len(annotations):
        counts = Counter(annotation["id"] for annotation in annotations)
        repeated = [id_ for id_, count in counts.items() if count > 1]
        found.errors.append(f"annotations share the id {shorten(repeated)}")


def _fault_of_box(annotation: dict, width: float, height: float) -> str | None:
    """Why mmdet drops a box, if it does."""
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


def check_coco(dataset: DataSet, classes: tuple[str, ...], findings: Findings) -> list[str] | None:
    """Compare one data set with its annotation file.

    Args:
        dataset: read as mmdet's ``CocoDataset`` reads it.
        classes: names that it selects.
        findings: where to say what disagrees.

    Returns:
        The names that labels stand for, in the order of the labels; those to propose if ``classes``
        do not fit the file; ``None`` if the file cannot be used.
    """
    if repeated := sorted({name for name in classes if classes.count(name) > 1}):
        findings.error(f"{dataset.classes_key} names {shorten(repeated)} more than once")
        return None
    built = dataset.build()
    if built is None or not is_local(dataset.cfg):
        return None
    path = str(built.ann_file)
    if "://" in path:
        return None
    try:
        found = read_coco(path)
    except (AnnotationError, OSError) as error:
        findings.error(str(error))
        return None
    for text in found.errors:
        findings.error(f"{path}: {text}")
    if not found.categories:
        findings.error(f"{path} has no categories, so no box has a class")
        return None
    if not found.sizes:
        findings.error(f"{path} has no images")
        return None
    _check_images(dataset, built, found, path, findings)
    labels = found.labels(classes)
    fits, proposed = _check_names(dataset, classes, found, path, findings)
    if dataset.phase != "test" or found.annotations:
        ids = set(labels if fits else found.categories)
        _check_boxes(dataset, built, found, ids, path, findings)
    return list(labels.values()) if fits else proposed


def _check_names(
    dataset: DataSet, classes: tuple[str, ...], found: CocoFile, path: str, findings: Findings
) -> tuple[bool, list[str]]:
    """Whether the labels mean what the classes say, and the classes to propose if not.

    mmdet numbers the categories that ``classes`` select in the order of the file. A class that the
    file lacks thus shifts all labels behind it.
    """
    key, labels = dataset.classes_key, list(found.labels(classes).values())
    absent = [name for name in classes if name not in labels]
    unused = [name for name in found.names if name not in classes]
    told = (dataset.cfg.get("metainfo") or dataset.cfg).get("classes") is not None
    origin = f"{key}: " if told else f"{key} is not set, so {type_name(dataset.kind)} looks for "
    if absent and (unused or not labels or labels != list(classes[: len(labels)])):
        findings.error(
            f"{origin}{shorten(absent)}: not among the categories of {path}, "
            f"which are {shorten(found.names)}"
        )
        meant = {*labels}
        for name in absent:
            meant.update(difflib.get_close_matches(str(name), unused, n=1))
        several = len(meant) == len(classes)  # every misspelt name is like one of the file
        proposed = [name for name in found.names if name in meant] if several else found.names
        findings.set_names(key, proposed)
        return False, proposed
    if absent:
        findings.warn(f"{origin}{shorten(absent)}: not among the categories of {path}")
    elif labels != list(classes):
        findings.warn(
            f"{key} is in another order than the categories of {path}: labels follow the file, so "
            f"pictures and tables call {labels[0]} {classes[0]}, and so on"
        )
        findings.set_names(key, labels)
    empty = [name for id_, name in found.categories.items()
             if name in classes and name in found.parents and not found.boxes[id_]]  # fmt: skip
    if empty and found.annotations:
        findings.warn(
            f"{path}: {shorten(empty)} is the parent of other categories and has no boxes of its "
            "own; it still counts as a class"
        )
        findings.set_names(key, [name for name in labels if name not in empty])
    return True, labels


def _check_images(
    dataset: DataSet, built: Any, found: CocoFile, path: str, findings: Findings
) -> None:
    pipeline = dataset.cfg.get("pipeline") or [{}]
    first = pipeline[0]
    loads = type_name(first.get("type")) == "LoadImageFromFile"
    if not loads or not is_local(first):
        return
    folder = built.data_prefix.get("img", "")
    absent = [name for name in found.file_names if not osp.exists(osp.join(folder, name))]
    if absent:
        findings.error(
            f"{path}: {len(absent)} of {len(found.file_names)} images that were looked for are not "
            f"in {folder or '.'}, such as {absent[0]}"
        )


def _check_boxes(
    dataset: DataSet, built: Any, found: CocoFile, ids: set, path: str, findings: Findings
) -> None:
    usable = sum(found.boxes[id_] for id_ in ids)
    reasons = ""
    for fault, which in found.faults.items():
        if fault == "have no segmentation":
            continue
        text = f"{len(which)} of {found.annotations} annotations {fault} (such as id {which[0]})"
        reasons += f"; {text}"
        rare = len(which) < _HARMLESS * found.annotations and "below one pixel" in fault
        if usable and not rare:
            findings.warn(f"{path}: {text}; they are dropped")
    if not usable:
        text = f"{path} has no box of the classes of {dataset.key}{reasons}"
        # One of several may hold unlabelled images.
        if dataset.phase == "train" and not (".datasets." in dataset.key and not found.annotations):
            findings.error(text)
        else:
            findings.warn(text)
    elif dataset.phase == "train" and not _left(built, found, ids):
        findings.error(
            f"{path}: filter_cfg={dict(built.filter_cfg)} of {dataset.key} leaves no image"
        )
    masks = any(
        step.get("with_mask") for step in dataset.cfg.get("pipeline") or [] if hasattr(step, "get")
    )
    if masks and (which := found.faults.get("have no segmentation")):
        findings.error(
            f"{path}: {len(which)} of {found.annotations} annotations have no segmentation (such "
            f"as id {which[0]}), but {dataset.key}.pipeline loads masks (with_mask=True)"
        )


def _drops_empty(built: Any) -> bool:
    return bool((built.filter_cfg or {}).get("filter_empty_gt"))


def _left(built: Any, found: CocoFile, ids: set) -> bool:
    """Whether mmdet's filter leaves an image to train on."""
    if built.test_mode or not built.filter_cfg:
        return True
    smallest = built.filter_cfg.get("min_size", 0)
    pool = set(found.sizes)
    if _drops_empty(built):
        pool &= set().union(*(found.images_with.get(id_, set()) for id_ in ids))
    return any(found.sizes[id_] >= smallest for id_ in pool)


def check_evaluator(path: str, files: list[str], where: str, findings: Findings) -> None:
    """Whether the annotation file of an evaluator knows all images of the data sets it judges."""
    try:
        known = set(read_coco(path).sizes)
        tested = set().union(*(read_coco(file).sizes for file in files))
    except (AnnotationError, OSError):
        return  # the data set's own check tells
    if unknown := sorted(tested - known, key=str):
        findings.error(
            f"{where}.ann_file is {path}, which lacks {len(unknown)} of {len(tested)} images of "
            f"{', '.join(files)} (such as id {unknown[0]})"
        )
        if len(files) == 1:
            findings.set(f"{where}.ann_file", files[0])

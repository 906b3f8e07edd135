"""Check that annotation files in the format of COCO fit the data sets of mmdet."""

from __future__ import annotations

import difflib
import os.path as osp
from typing import Any

from mmlocal.cli.data.coco_file import AnnotationError, CocoFile, read_coco
from mmlocal.cli.data.datasets import DataSet, is_local
from mmlocal.cli.data.report import Findings, shorten
from mmlocal.libraries.config_parts import type_name

# Up to this share of boxes without width is no reason to warn: public data sets hold a few.
_HARMLESS = 1e-3


def check_coco(dataset: DataSet, classes: tuple[str, ...], findings: Findings) -> list[str] | None:
    """Compare one data set with its annotation file.

    Args:
        dataset: data set that mmdet's ``CocoDataset`` reads.
        classes: names of the classes that the data set selects.
        findings: collects the mistakes.

    Returns:
        The names of the labels, in the order of the labels. If ``classes`` do not fit the file, the
        names to use instead. ``None`` if the file cannot be used.
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
    """Whether each label means the class in its place, and if not, the classes to propose.

    ``classes`` select categories of the file, and mmdet numbers these in the order of the file. So
    a class that the file lacks shifts all labels after it.
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
        several = len(meant) == len(classes)  # the file has a similar name for each misspelt one
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
    names = found.file_names
    if dataset.phase == "train" and _drops_empty(built):  # the run never opens the others
        used = set().union(*found.images_with.values())
        names = {id_: name for id_, name in names.items() if id_ in used}
    absent = [name for name in names.values() if not osp.exists(osp.join(folder, name))]
    if absent:
        findings.error(
            f"{path}: {len(absent)} of {len(names)} images that were looked for are not "
            f"in {folder or '.'}, such as {absent[0]}"
        )


def _check_boxes(
    dataset: DataSet, built: Any, found: CocoFile, ids: set, path: str, findings: Findings
) -> None:
    usable = sum(found.boxes[id_] for id_ in ids)
    reasons = ""
    for fault, which in found.faults.items():
        if fault in (found.NO_MASK, found.RUN_LENGTHS):
            continue
        text = f"{len(which)} of {found.annotations} annotations {fault} (such as id {which[0]})"
        reasons += f"; {text}"
        rare = len(which) < _HARMLESS * found.annotations and "below one pixel" in fault
        if usable and not rare:
            findings.warn(f"{path}: {text}; they are dropped")
    if not usable:
        text = f"{path} has no box of the classes of {dataset.key}{reasons}"
        # One of several data sets may hold unlabelled images.
        if dataset.phase == "train" and not (".datasets." in dataset.key and not found.annotations):
            findings.error(text)
        else:
            findings.warn(text)
    elif dataset.phase == "train" and not _left(built, found, ids):
        findings.error(
            f"{path}: filter_cfg={dict(built.filter_cfg)} of {dataset.key} leaves no image"
        )
    steps = [step for step in dataset.cfg.get("pipeline") or [] if hasattr(step, "get")]
    loaders = [step for step in steps if step.get("with_mask")]
    if loaders and (bare := found.faults.get(found.NO_MASK)):
        findings.error(
            f"{path}: {len(bare)} of {found.annotations} annotations {found.NO_MASK} (such "
            f"as id {bare[0]}), but {dataset.key}.pipeline loads masks (with_mask=True)"
        )
    polygons = any(not step.get("poly2mask", True) for step in loaders)
    if polygons and (packed := found.faults.get(found.RUN_LENGTHS)):
        findings.error(
            f"{path}: {len(packed)} of {found.annotations} annotations {found.RUN_LENGTHS} "
            f"(such as id {packed[0]}), which mmdet ignores with poly2mask=False in "
            f"{dataset.key}.pipeline"
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
    """Check that the annotation file of an evaluator lists all images that it gets.

    Args:
        path: annotation file of the evaluator.
        files: annotation files of the data sets.
        where: key of the evaluator's metric in the config.
        findings: collects the mistakes.
    """
    try:
        known = set(read_coco(path).sizes)
        tested = set().union(*(read_coco(file).sizes for file in files))
    except (AnnotationError, OSError):
        return  # the check of the data set reports it
    if unknown := sorted(tested - known, key=str):
        findings.error(
            f"{where}.ann_file is {path}, which lacks {len(unknown)} of {len(tested)} images of "
            f"{', '.join(files)} (such as id {unknown[0]})"
        )
        if len(files) == 1:
            findings.set(f"{where}.ann_file", files[0])

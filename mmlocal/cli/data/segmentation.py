"""Check the label maps of mmseg."""

from __future__ import annotations

import os
import os.path as osp
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image

from mmlocal.cli.data.datasets import DataSet, is_local
from mmlocal.cli.data.heads import Head, heads_of
from mmlocal.cli.data.report import Findings, shorten
from mmlocal.libraries.config_parts import type_name

_SAMPLE = 32  # number of label maps to read
_IGNORED = 255  # label that losses ignore by default


def check_segmentation(
    cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
) -> None:
    """Compare up to 32 label maps of one data set with the heads.

    The data set's own ``LoadAnnotations`` reads the maps, so that ``reduce_zero_label`` and
    selected classes take effect.

    Args:
        cfg: whole config.
        dataset: data set of the class ``BaseSegDataset`` of mmseg.
        classes: names of its classes, if known.
        findings: collects the mistakes.
    """
    if not _check_metainfo(dataset, classes, findings) or not is_local(dataset.cfg):
        return
    built = dataset.build()
    if built is None:
        return
    try:
        items = built.load_data_list()
    except Exception:  # the run reports it
        return
    if not items:
        _tell_empty(dataset, built, findings)
        return
    items = items[:: max(1, len(items) // _SAMPLE)][:_SAMPLE]
    absent = [
        item[key]
        for key in ("img_path", "seg_map_path")
        for item in items
        if item.get(key) and not osp.exists(item[key]) and _needs(dataset, key)
    ]
    if absent:
        findings.error(
            f"{dataset.key}: {len(absent)} files of {len(items)} images that were looked for are "
            f"absent, such as {absent[0]}"
        )
        return
    counts = _count_labels(dataset, items, findings)
    if counts is not None:
        _check_labels(cfg, dataset, classes, counts, len(items), findings)


def _check_metainfo(dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings) -> bool:
    """Whether mmseg accepts the class names and colours."""
    known = (getattr(dataset.kind, "METAINFO", None) or {}).get("classes")
    if known and classes and (strange := [name for name in classes if name not in known]):
        findings.error(
            f"{dataset.classes_key}: {shorten(strange)} not among the classes of "
            f"{type_name(dataset.kind)} ({shorten(known)}); other classes need "
            f"{dataset.key}.type=BaseSegDataset"
        )
        return False
    palette = (dataset.cfg.get("metainfo") or {}).get("palette")
    if palette and classes and len(palette) != len(classes) and not known:
        findings.error(
            f"{dataset.key}.metainfo.palette has {len(palette)} colours for {len(classes)} classes"
        )
        return False
    return True


def _needs(dataset: DataSet, key: str) -> bool:
    return key == "img_path" or _loader(dataset) is not None


def _loader(dataset: DataSet) -> dict | None:
    """The step of the pipeline that reads label maps."""
    for step in dataset.cfg.get("pipeline") or []:
        if hasattr(step, "get") and type_name(step.get("type")) == "LoadAnnotations":
            return step
    return None


def _tell_empty(dataset: DataSet, built: Any, findings: Findings) -> None:
    if built.ann_file and osp.isfile(built.ann_file):
        findings.error(f"{dataset.key}: {built.ann_file} lists no image")
        return
    folder = built.data_prefix.get("img_path") or "."
    suffixes = {osp.splitext(name)[1] for _, _, files in os.walk(folder) for name in files}
    there = f"there are {', '.join(sorted(suffixes))}" if suffixes else "it is empty"
    findings.error(f"{dataset.key}: no image *{built.img_suffix} in {folder}; {there}")
    if len(suffixes) == 1:
        findings.set(f"{dataset.key}.img_suffix", *suffixes)


def _count_labels(dataset: DataSet, items: list[dict], findings: Findings) -> np.ndarray | None:
    """Count the pixels of each label in some maps; ``None`` if there are no maps."""
    step = _loader(dataset)
    if step is None or any(item.get("seg_map_path") is None for item in items):
        return None
    counts = np.zeros(256, dtype=np.int64)
    other_sizes = False
    for item in items:
        try:
            loaded = TRANSFORMS.build(step)(dict(item, seg_fields=[]))
            labels = loaded["gt_seg_map"]
        except Exception as error:
            findings.error(f"{item['seg_map_path']} cannot be read as a label map: {error}")
            return None
        if labels.ndim != 2:
            findings.error(
                f"{item['seg_map_path']} has {labels.shape[-1]} channels; a label map has one, "
                "with the number of the class in each pixel"
            )
            return None
        if labels.dtype != np.uint8:  # another step than mmseg's own read it
            return None
        size = _image_size(item["img_path"])
        # An orientation tag in the file may swap height and width.
        if size is not None and sorted(size) != sorted(labels.shape) and not other_sizes:
            other_sizes = True
            findings.warn(
                f"{item['seg_map_path']} has {labels.shape[0]}x{labels.shape[1]} pixels, its image "
                f"{size[0]}x{size[1]}"
            )
        counts += np.bincount(labels.ravel(), minlength=256)
    return counts


def _image_size(path: str) -> tuple[int, int] | None:
    """Height and width from the header of an image file; ``None`` if Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, ValueError):
        return None
    return height, width


def _check_labels(
    cfg: Config,
    dataset: DataSet,
    classes: tuple[str, ...] | None,
    counts: np.ndarray,
    number: int,
    findings: Findings,
) -> None:
    trains = dataset.phase == "train"
    # ignore_index of the data set has no effect: losses and metrics use their own.
    labels = [int(label) for label in np.flatnonzero(counts) if label != _IGNORED]
    where = f"{dataset.key} (seen in {number} label maps)"
    if not labels:
        reason = "; is reduce_zero_label meant?" if dataset.cfg.get("reduce_zero_label") else ""
        findings.error(f"{where}: every pixel is to be ignored (label {_IGNORED}){reason}")
        return
    heads = heads_of(cfg)
    for head in heads if trains else []:
        ignored = _ignored_by(cfg, head)
        beyond = [label for label in labels if label >= head.num_classes and label != ignored]
        if beyond:
            findings.error(
                f"{where}: no output for label {shorten(beyond)}, as {head.setting} is "
                f"{head.num_classes}{_hint(dataset, classes, beyond, head.num_classes)}"
            )
            if classes and max(beyond) < len(classes):
                findings.set(head.setting, len(classes))
    if classes and not trains and max(labels) >= len(classes):
        findings.warn(
            f"{where}: label {max(labels)} is counted for no class, as "
            f"{dataset.classes_key} has {len(classes)} names"
        )


def _hint(dataset: DataSet, classes: tuple[str, ...] | None, beyond: list[int], number: int) -> str:
    if classes and max(beyond) < len(classes):
        return ""
    if beyond == [number] and not dataset.cfg.get("reduce_zero_label"):
        return (
            f"; if 0 stands for no class, {dataset.key}.reduce_zero_label=True takes one off "
            "every label"
        )
    return "; label maps hold the numbers of the classes, from 0"


def _ignored_by(cfg: Config, head: Head) -> int:
    node: Any = cfg
    for key in head.key.split("."):
        node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
    return node.get("ignore_index", _IGNORED)

"""Check the class folders and annotation files of mmpretrain."""

from __future__ import annotations

import json
import os
import os.path as osp
from typing import Any

from mmlocal.cli.data.datasets import DataSet, is_local
from mmlocal.cli.data.report import Findings, shorten

_SAMPLE = 200  # number of images of an annotation file to look for on the disk


def check_classification(dataset: DataSet, findings: Findings) -> tuple[str, ...] | int | None:
    """Check the class folders or the annotation file of one data set.

    Args:
        dataset: data set that mmpretrain's ``CustomDataset`` or ``BaseDataset`` reads.
        findings: collects the mistakes.

    Returns:
        The names of the classes. Without names, the number of classes that the labels need.
        ``None`` if neither is known.
    """
    built = dataset.build()
    if built is None or not is_local(dataset.cfg) or not getattr(built, "with_label", True):
        return None
    names = built.metainfo.get("classes")
    names = tuple(names) if isinstance(names, (list, tuple)) else None
    if not built.ann_file:
        return _check_folders(dataset, built, names, findings)
    if not osp.isfile(built.ann_file):
        return names
    if hasattr(built, "with_label"):
        labels = _read_list(built, findings)
    else:
        names, labels = _read_json(built, names, findings)
    if labels is None:
        return names
    if not labels:
        findings.error(f"{built.ann_file} lists no image")
        return names
    low, high = min(labels), max(labels)
    if low < 0:
        findings.error(f"{built.ann_file} has the label {low}; labels start at 0")
    if names and high >= len(names):
        findings.error(
            f"{built.ann_file} has labels up to {high}, but {dataset.classes_key} has "
            f"{len(names)} names"
        )
        return None
    return names or high + 1


def _check_folders(
    dataset: DataSet, built: Any, names: tuple[str, ...] | None, findings: Findings
) -> tuple[str, ...] | None:
    root = built.img_prefix
    if not osp.isdir(root):
        return names
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not folders:
        findings.error(
            f"{root} has no class folders; put the images of each class into one, or give "
            f"{dataset.key}.ann_file"
        )
        return None
    empty = [name for name in folders if not _has_image(osp.join(root, name), built.extensions)]
    suffixes = f"no image ({', '.join(sorted(built.extensions))})"
    if empty == folders:
        findings.error(f"{root}: {suffixes} in any of the {len(folders)} class folders")
        return None
    if empty:
        findings.warn(f"{root}: {suffixes} in {shorten(empty)}; they still count as classes")
    if names is None:
        return tuple(folders)
    if len(names) != len(folders):
        findings.error(
            f"{root} has {len(folders)} class folders ({shorten(folders)}), but "
            f"{dataset.classes_key} has {len(names)} names ({shorten(names)})"
        )
        return None
    if set(names) == set(folders) and list(names) != folders:
        findings.warn(
            f"{dataset.classes_key} is in another order than the folders of {root}, which are "
            f"numbered by the alphabet: {folders[0]} is called {names[0]}, and so on"
        )
        findings.set_names(dataset.classes_key, folders)
    return names


def _has_image(folder: str, extensions: tuple[str, ...]) -> bool:
    return any(
        name.lower().endswith(extensions) for _, _, files in os.walk(folder) for name in files
    )


def _read_list(built: Any, findings: Findings) -> list[int] | None:
    """Labels of a text file with ``<image> <label>`` in each line."""
    labels, images = [], []
    with open(built.ann_file, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            image, _, label = line.strip().rpartition(" ")
            try:
                labels.append(int(label))
            except ValueError:
                findings.error(
                    f"{built.ann_file}, line {number} must be an image and the number of its "
                    f"class, got {line.strip()[:80]!r}"
                )
                return None
            images.append(image)
    _look_for(images, built, findings)
    return labels


def _read_json(
    built: Any, names: tuple[str, ...] | None, findings: Findings
) -> tuple[tuple[str, ...] | None, list[int] | None]:
    """Class names and labels of a file in the format of OpenMMLab 2.0."""
    try:
        with open(built.ann_file, encoding="utf-8") as file:
            content = json.load(file)
        items, about = content["data_list"], content["metainfo"]
        labels = [item["gt_label"] for item in items]
        labels = [x for label in labels for x in (label if isinstance(label, list) else [label])]
        if any(type(label) is not int for label in labels):
            raise TypeError("a gt_label is not a number")
        _look_for([item["img_path"] for item in items], built, findings)
    except json.JSONDecodeError as error:
        findings.error(f"{built.ann_file} is not valid JSON ({error}); is it a whole file?")
        return names, None
    except UnicodeDecodeError:
        return names, None  # another format of MMEngine
    except (KeyError, TypeError) as error:
        findings.error(
            f"{built.ann_file} must have metainfo and a data_list of img_path and gt_label "
            f"({type(error).__name__}: {error})"
        )
        return names, None
    own = about.get("classes") if isinstance(about, dict) else None
    return names or (tuple(own) if isinstance(own, list) else None), labels


def _look_for(images: list[str], built: Any, findings: Findings) -> None:
    images = images[:: max(1, len(images) // _SAMPLE)][:_SAMPLE]
    absent = [name for name in images if not osp.exists(osp.join(built.img_prefix or "", name))]
    if absent:
        findings.error(
            f"{built.ann_file}: {len(absent)} of {len(images)} images that were looked for are not "
            f"in {built.img_prefix or '.'}, such as {absent[0]}"
        )

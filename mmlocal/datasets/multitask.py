"""The base of data sets that have a label map of each image for several tasks."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmengine.dataset import BaseDataset

from mmlocal.tasks import find_tasks

_SHOWN = 3  # files to name of a longer list


@dataclass(frozen=True)
class Source:
    """Files of one kind, one for each image.

    Args:
        folder: folder below the root of the data set.
        suffix: end of the file names, after the name of the image.
        format: name of the format, a key of
            ``mmlocal.datasets.transforms.label_formats.FORMATS``; empty for images.
        or_else: folder to look in for each file that is not in ``folder``.
        label_map: files that the format needs beside these.
    """

    folder: str
    suffix: str
    format: str = ""
    or_else: str = ""
    label_map: Source | None = None

    def find(self, root: Path, names: Iterable[str]) -> dict[str, str]:
        """Paths by name of the image; names without a file are left out."""
        found: dict[str, str] = {}
        for folder in filter(None, (self.or_else, self.folder)):
            files = _files(root / folder)
            found |= {
                name: str(root / folder / f"{name}{self.suffix}")
                for name in names
                if f"{name}{self.suffix}" in files
            }
        return found

    def __str__(self) -> str:
        other = f" or {self.or_else}/*{self.suffix}" if self.or_else else ""
        return f"{self.folder}/*{self.suffix}{other}"


class MultiTaskDataset(BaseDataset):
    """Images with label maps for several tasks.

    A subclass names the files. Each kind of file may come in several forms. The data set takes the
    first form that has a file for each image of the split.

    Each item has ``img_path``, ``sample_id`` (the name of the image), ``tasks``, and ``labels``:
    the ``path`` and the ``format`` of the label map by task. Items for training also have the label
    map of semantic segmentation, if there is one, because the random crop balances its classes.

    Args:
        data_root: folder of the data set.
        split: name of the split; a text file of this name lists the images.
        tasks: tasks to load the label maps for.
        ann_file: file of boxes of objects in COCO's format, below ``data_root``. Each item then
            has ``img_id`` and ``instances``, which mmcv's ``LoadAnnotations`` reads. Classes have
            numbers in the order of the file's ``categories``. Empty for no boxes.
        metainfo: ``classes`` and ``palette``, if other than the class of the data set has them.
            Without ``palette``, the classes get the colours of PASCAL VOC.
        **kwargs: other arguments of MMEngine's ``BaseDataset``.

    Raises:
        TypeError: ``tasks`` is a string.
        ValueError: a task is unknown, named twice, or has no labels; or the split is empty or names
            an image twice.
        FileNotFoundError: the data set, the split or a file is missing. The message shows the
            expected tree.
    """

    #: The tree of the files, with ``{root}`` for the folder.
    TREE: ClassVar[str]
    #: Folder of the text files that list the images of the splits.
    SPLITS: ClassVar[str]
    #: Forms of the images.
    IMAGES: ClassVar[tuple[Source, ...]]
    #: Forms of the label maps by task.
    LABELS: ClassVar[Mapping[str, tuple[Source, ...]]]
    #: Number of the first class in the palette of PASCAL VOC, in which 0 is black.
    FIRST_COLOUR: ClassVar[int] = 0

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        tasks: Sequence[str] = ("semseg",),
        ann_file: str = "",
        metainfo: Mapping | None = None,
        **kwargs: Any,
    ) -> None:
        self.split = split
        self.tasks = tuple(task.name for task in find_tasks(tasks))
        self.root = Path(data_root).expanduser()
        for name in self.tasks:
            if name not in self.LABELS:
                raise ValueError(
                    f"{type(self).__name__} has no labels for {name!r}; it has "
                    f"{', '.join(self.LABELS)}"
                )
        metainfo = {**(metainfo or {}), "tasks": self.tasks}
        if "classes" in metainfo and "palette" not in metainfo:
            first = self.FIRST_COLOUR
            metainfo["palette"] = voc_palette(first + len(metainfo["classes"]))[first:]
        super().__init__(ann_file, metainfo=metainfo, data_root=str(self.root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Find the files of each image of the split."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"there is no folder {self.root}; {self._expected()}")
        names = self._read_split()
        images = self._find("images", self.IMAGES, names)[1]
        labels = {task: self._find_labels(task, names) for task in self.tasks}
        if "semseg" not in labels and not self.test_mode and "semseg" in self.tasks_with_labels():
            labels["semseg"] = self._find_labels("semseg", names)
        boxes = self._read_boxes(names) if self.ann_file else {}
        return [
            {
                "img_path": images[name],
                "sample_id": name,
                "tasks": self.tasks,
                "labels": {task: found[name] for task, found in labels.items()},
                **boxes.get(name, {}),
            }
            for name in names
        ]

    def tasks_with_labels(self) -> list[str]:
        """Names of the tasks that have a file with labels, whatever ``tasks`` asks for."""
        return [
            task
            for task, sources in self.LABELS.items()
            if any(
                name.endswith(source.suffix)
                for source in sources
                for folder in (source.folder, source.or_else or source.folder)
                for name in _files(self.root / folder)
            )
        ]

    def _read_boxes(self, names: list[str]) -> dict[str, dict]:
        """``img_id`` and ``instances`` of each image, out of a file in COCO's format."""
        path = Path(self.ann_file)
        if not path.is_file():
            raise FileNotFoundError(f"ann_file: there is no file {path}; {self._expected()}")
        try:
            coco = json.loads(path.read_text(encoding="utf-8"))
            numbers = {category["id"]: i for i, category in enumerate(coco["categories"])}
            instances = defaultdict(list)
            for one in coco["annotations"]:
                x, y, width, height = one["bbox"]
                box = {"bbox": [x, y, x + width, y + height], "ignore_flag": one.get("iscrowd", 0)}
                box["bbox_label"] = numbers[one["category_id"]]
                instances[one["image_id"]].append(box)
            images = {Path(image["file_name"]).stem: image["id"] for image in coco["images"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"ann_file: {path} is no file of boxes in COCO's format: {error!r}"
            ) from error
        absent = [name for name in names if name not in images]
        if absent:
            raise ValueError(
                f"ann_file: {path} does not list {len(absent)} of {len(names)} images of the split "
                f"{self.split!r}: {_shorten(absent)}"
            )
        return {
            name: {"img_id": images[name], "instances": instances[images[name]]} for name in names
        }

    def _read_split(self) -> list[str]:
        path = self.root / self.SPLITS / f"{self.split}.txt"
        if not path.is_file():
            there = sorted(Path(name).stem for name in _files(path.parent) if name.endswith(".txt"))
            splits = f"there are the splits {', '.join(there)}; " if there else ""
            raise FileNotFoundError(
                f"there is no list of the split {self.split!r}, {path}; {splits}{self._expected()}"
            )
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must be a text file in UTF-8: {error}") from error
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise ValueError(f"{path} lists no image; write the name of one image in each line")
        double = [name for name, times in Counter(names).items() if times > 1]
        if double:
            raise ValueError(
                f"{path} lists {len(double)} images more than once: {_shorten(double)}; remove the "
                "repeated lines"
            )
        return names

    def _find_labels(self, task: str, names: list[str]) -> dict[str, dict]:
        found_any = any(source.find(self.root, names) for source in self.LABELS[task])
        if not found_any and task not in (present := self.tasks_with_labels()):
            raise ValueError(
                f"{type(self).__name__} in {self.root} has no labels for {task!r}; it has "
                f"{', '.join(present) or 'no labels'}; {self._expected()}"
            )
        source, paths = self._find(f"labels for {task!r}", self.LABELS[task], names)
        found = {name: {"path": path, "format": source.format} for name, path in paths.items()}
        if source.label_map is not None:
            maps = self._find(f"labels for {task!r}", (source.label_map,), names)[1]
            for name in names:
                found[name]["label_map"] = maps[name]
        return found

    def _find(
        self, kind: str, sources: tuple[Source, ...], names: list[str]
    ) -> tuple[Source, dict[str, str]]:
        """The form of the files, and their paths by name of the image."""
        found = [(source, source.find(self.root, names)) for source in sources]
        source, paths = max(found, key=lambda pair: len(pair[1]))  # the first of the fullest
        absent = [name for name in names if name not in paths]
        if absent:
            forms = ", or ".join(map(str, sources))
            raise FileNotFoundError(
                f"{len(absent)} of {len(names)} images of the split {self.split!r} have no file of "
                f"the {kind} ({forms}) in {self.root}: {_shorten(absent)}; {self._expected()}"
            )
        return source, paths

    def _expected(self) -> str:
        return f"the expected tree is{self.TREE.format(root=self.root)}"


def voc_palette(number: int) -> list[tuple[int, int, int]]:
    """The colours of PASCAL VOC, in which each bit triple of a label is a bit of R, G and B.

    Args:
        number: number of colours; the first is black.

    Returns:
        RGB colours from 0 to 255.

    Source:
        The development kit of PASCAL VOC 2012, ``VOClabelcolormap.m``.
    """
    return [
        tuple(  # type: ignore[misc]
            sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
            for channel in range(3)
        )
        for label in range(number)
    ]


def _files(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()


def _shorten(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

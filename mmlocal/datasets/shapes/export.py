"""Writes the data set: folders and annotation formats."""

import json
import operator
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from mmlocal.datasets.shapes.render import CLASSES, Scene, draw_scene
from mmlocal.files import whole_folder, write_whole

TASKS = ("det", "seg", "cls")
SPLITS = ("train", "val")
MANIFEST = "shapes.json"
GENERATOR = "mmlocal.datasets.shapes"  # tells our manifests from other files of that name
VERSION = 3  # goes up when the same arguments give other files
MIN_SIZE = 32  # smallest picture, in pixels; MAX_SIDE of it must not be below MIN_SIDE

OBJECTS_PER_IMAGE = (3, 7)
MIN_SIDE = 14.0  # pixels, square root of an object's area; a disc of 16 pixels
MAX_SIDE = 0.68  # the same for the largest objects, as a share of the picture's width
SPREAD = 0.75  # share of the picture in which objects have their centres
MIN_VISIBLE = 0.8  # share of each object in a scene that shows
CLS_SIDE = (0.3, 0.5)  # share of the picture's width, for the one object in it
CLS_SPREAD = 0.2
CLS_MIN_VISIBLE = 0.9


def generate_shapes(
    out_dir: str | os.PathLike,
    *,
    tasks: Sequence[str] = TASKS,
    num_train: int = 800,
    num_val: int = 200,
    image_size: int = 192,
    cls_size: int = 64,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes the data set described in :mod:`mmlocal.datasets.shapes`.

    The same arguments give the same bytes with the same versions of NumPy and OpenCV. Picture ``i``
    of a split does not depend on how many pictures there are.

    All files are written to a hidden folder beside ``out_dir`` that is renamed at the end. So
    ``out_dir`` is either as it was before or complete, whenever the process ends. Of two processes
    that write the same data set at once, the slower one uses the files of the faster one.

    Args:
        out_dir: folder to make. It may exist if it is empty, or, with ``overwrite``, if it is a
            data set of this generator.
        tasks: any of ``"det"`` (COCO instances), ``"seg"`` (label maps), ``"cls"`` (class folders).
        num_train: pictures in ``train``, and in ``cls/train``. At least 1.
        num_val: the same for ``val``.
        image_size: width and height of the scenes in pixels, at least 32. Objects of all three COCO
            sizes need about 180 or more.
        cls_size: width and height of the pictures in the class folders in pixels, at least 32.
        seed: any integer from 0.
        overwrite: replace an existing data set, which stays until the new one is complete.
        progress: show a progress bar on stderr.

    Returns:
        The contents of ``shapes.json``: ``generator``, ``version``, ``classes``, the ``arguments``
        that decide the contents, and ``counts`` of images and objects per split.

    Raises:
        ValueError: a number out of range, an unknown task, or no task.
        TypeError: a number that is not an integer, or ``tasks`` given as one string.
        FileExistsError: ``out_dir`` is a file, is a data set and ``overwrite`` is False, or is a
            folder that holds anything else.
        OSError: the disk is full or ``out_dir`` cannot be written.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks={tasks!r} is a string; give a sequence such as ({tasks!r},)")
    if not tasks or set(tasks) - set(TASKS):
        raise ValueError(f"tasks={tuple(tasks)!r}: give one or more of {TASKS}")
    arguments: dict[str, Any] = {
        "tasks": _in_order(tasks),
        "num_train": _integer("num_train", num_train, 1),
        "num_val": _integer("num_val", num_val, 1),
        "image_size": _integer("image_size", image_size, MIN_SIZE),
        "cls_size": _integer("cls_size", cls_size, MIN_SIZE),
        "seed": _integer("seed", seed, 0),
    }
    target = Path(out_dir).resolve()
    _check_target(target, overwrite)
    counts = {split: {"images": arguments[f"num_{split}"]} for split in SPLITS}
    manifest = {
        "generator": GENERATOR,
        "version": VERSION,
        "classes": list(CLASSES),
        "arguments": arguments,
        "counts": counts,
    }
    try:
        with whole_folder(target, overwrite) as root:
            _write_tasks(root, arguments, counts, progress)
            _write_json(root / MANIFEST, manifest, indent=2)
    except OSError as error:
        if not overwrite and read_manifest(target) == manifest:
            return manifest  # another process was faster
        _check_target(target, overwrite)
        raise _cannot_write(target, error) from error
    return manifest


def add_task(out_dir: str | os.PathLike, task: str, *, progress: bool = True) -> dict[str, Any]:
    """Adds a task to a data set, with the arguments that the data set was made with.

    All files that are there already stay. ``shapes.json`` names the task when all its files are
    there. A process that is stopped before leaves files or folders that are whole, and the next
    call completes them.

    Args:
        out_dir: a data set of this generator.
        task: ``"det"``, ``"seg"`` or ``"cls"``.
        progress: show a progress bar on stderr.

    Returns:
        The contents of ``shapes.json``.

    Raises:
        ValueError: an unknown task, or ``out_dir`` is no data set of this version of the generator.
        FileExistsError: ``out_dir`` holds something else.
        OSError: the disk is full or ``out_dir`` cannot be written.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: give one of {TASKS}")
    target = Path(out_dir).resolve()
    _check_target(target, overwrite=True)
    manifest = read_manifest(target)
    if manifest is None or manifest["version"] != VERSION:
        raise ValueError(
            f"out_dir={str(target)!r} is no data set of version {VERSION} of the generator"
        )
    arguments, counts = manifest["arguments"], manifest["counts"]
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as stage:
            _write_tasks(Path(stage), arguments | {"tasks": [task]}, counts, progress)
            _move_missing(Path(stage), target)
        manifest = read_manifest(target) or manifest  # another process may have added its task
        manifest["arguments"]["tasks"] = _in_order([task, *manifest["arguments"]["tasks"]])
        for split in SPLITS:
            manifest["counts"][split].update(counts[split])
        _write_json(target / MANIFEST, manifest, indent=2)
    except OSError as error:
        raise _cannot_write(target, error) from error
    return manifest


def read_manifest(out_dir: str | os.PathLike) -> dict[str, Any] | None:
    """``shapes.json`` of a data set, or None if the folder is not one of this generator."""
    try:
        manifest = json.loads((Path(out_dir) / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("generator") == GENERATOR
    return manifest if ours else None


def make_scene(seed: int, split: str, index: int, image_size: int) -> Scene:
    """Scene ``index`` (from 0) of a split: several objects, partly covered or cut by the border."""
    rng = _generator(seed, "scene", split, index)
    count = rng.integers(*OBJECTS_PER_IMAGE, endpoint=True)
    categories = rng.integers(len(CLASSES), size=count)
    categories[0] = index % len(CLASSES)  # no class is missing, however few the pictures
    sides = (MIN_SIDE, MAX_SIDE * image_size)
    return draw_scene(rng, image_size, categories.tolist(), sides, SPREAD, MIN_VISIBLE)


def make_class_image(seed: int, split: str, index: int, size: int) -> Scene:
    """Picture ``index`` (from 0) of a split for classification: one object, classes in turn."""
    rng = _generator(seed, "cls", split, index)
    sides = (CLS_SIDE[0] * size, CLS_SIDE[1] * size)
    return draw_scene(rng, size, [index % len(CLASSES)], sides, CLS_SPREAD, CLS_MIN_VISIBLE)


def _generator(seed: int, kind: str, split: str, index: int) -> np.random.Generator:
    """An independent stream of random numbers for each picture."""
    return np.random.default_rng((seed, ("scene", "cls").index(kind), SPLITS.index(split), index))


def _write_tasks(root: Path, arguments: dict, counts: dict, progress: bool) -> None:
    """Writes the files of ``arguments["tasks"]``; adds the objects in the scenes to ``counts``."""
    tasks = arguments["tasks"]
    if "det" in tasks or "seg" in tasks:
        for split in SPLITS:
            counts[split].update(_write_scenes(root, split, arguments, progress))
    if "cls" in tasks:
        for split in SPLITS:
            _write_class_folders(root, split, arguments, progress)


def _write_scenes(root: Path, split: str, arguments: dict, progress: bool) -> dict[str, Any]:
    """Writes one split for ``det`` and ``seg``; returns the counts for the manifest."""
    tasks, size = arguments["tasks"], arguments["image_size"]
    (root / split).mkdir()
    if "seg" in tasks:
        (root / "annotations" / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in _bar(range(arguments[f"num_{split}"]), f"{split} scenes", progress):
        scene = make_scene(arguments["seed"], split, index, size)
        name = f"{index + 1:06d}"
        _write_image(root / split / f"{name}.jpg", scene.image)
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": size, "width": size})
        # COCO's evaluation takes id 0 for "no object", so the ids begin at 1.
        annotations += [
            {"id": len(annotations) + k + 1, "image_id": index + 1, **annotation}
            for k, annotation in enumerate(coco_annotations(scene))
        ]
        if "seg" in tasks:
            _write_image(root / "annotations" / split / f"{name}.png", semantic_map(scene))
    if "det" in tasks:
        (root / "annotations").mkdir(exist_ok=True)
        coco = {
            "info": {"description": "Generated shapes", "version": str(VERSION)},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        }
        _write_json(root / "annotations" / f"instances_{split}.json", coco)

    classes = Counter(CLASSES[annotation["category_id"] - 1] for annotation in annotations)
    sizes = Counter(_coco_size(annotation["area"]) for annotation in annotations)
    return {
        "objects": len(annotations),
        "objects_per_class": {name: classes[name] for name in CLASSES},
        "objects_per_size": {name: sizes[name] for name in ("small", "medium", "large")},
    }


def _write_class_folders(root: Path, split: str, arguments: dict, progress: bool) -> None:
    for name in CLASSES:
        (root / "cls" / split / name).mkdir(parents=True)
    for index in _bar(range(arguments[f"num_{split}"]), f"{split} classes", progress):
        scene = make_class_image(arguments["seed"], split, index, arguments["cls_size"])
        folder = root / "cls" / split / CLASSES[scene.shapes[0].category]
        _write_image(folder / f"{index + 1:06d}.jpg", scene.image)


def coco_annotations(scene: Scene) -> list[dict[str, Any]]:
    """COCO annotations of the visible part of each object, without ``id`` and ``image_id``."""
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
    """``(H, W)`` uint8: 0 for the background, else the index into ``CLASSES`` plus 1."""
    labels = np.array([shape.category + 1 for shape in scene.shapes] + [0], dtype=np.uint8)
    return labels[scene.owner]  # BACKGROUND is -1, the last entry


def mask_to_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's run-length encoding of a mask, not compressed, so that plain JSON holds it.

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


def _coco_size(area: int) -> str:
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def _bar(items: range, description: str, progress: bool) -> Iterator[int]:
    console = Console(stderr=True)
    yield from track(items, description=f"{description:13}", console=console, disable=not progress)


def _write_image(path: Path, image: np.ndarray) -> None:
    """PNG, or JPEG at a quality that shows no artefacts, by the suffix.

    ``cv2.imwrite`` would not report a full disk.
    """
    full_colour = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    options = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95, *full_colour], ".png": []}[path.suffix]
    path.write_bytes(cv2.imencode(path.suffix, image, options)[1].tobytes())


def _write_json(path: Path, content: dict, indent: int | None = None) -> None:
    separators = (",", ": ") if indent else (",", ":")
    write_whole(path, json.dumps(content, indent=indent, separators=separators) + "\n")


def _in_order(tasks: Sequence[str]) -> list[str]:
    return [task for task in TASKS if task in tasks]


def _integer(name: str, value: Any, minimum: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} is not an integer") from None
    if number < minimum:
        raise ValueError(f"{name}={value!r} must be at least {minimum}")
    return number


def _check_target(target: Path, overwrite: bool) -> None:
    """Raises FileExistsError unless ``target`` is free or may be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"out_dir={str(target)!r} is a file; name a folder")
    manifest = read_manifest(target)
    if manifest is not None:
        if not overwrite:
            tasks = ", ".join(manifest["arguments"]["tasks"])
            raise FileExistsError(
                f"out_dir={str(target)!r} already holds a data set for {tasks}; "
                "pass overwrite=True (--overwrite) or name another folder"
            )
    elif any(target.iterdir()):
        raise FileExistsError(
            f"out_dir={str(target)!r} holds files but no data set of this generator, "
            "so it is never overwritten; name another folder"
        )


def _move_missing(source: Path, target: Path) -> None:
    """Moves the files and folders that ``target`` lacks, each of them in one go."""
    for path in source.iterdir():
        place = target / path.name
        if not place.exists():
            path.rename(place)
        elif path.is_dir():
            _move_missing(path, place)


def _cannot_write(target: Path, error: OSError) -> OSError:
    reason = error.strerror or error
    return OSError(error.errno, f"out_dir={str(target)!r} cannot be written: {reason}")

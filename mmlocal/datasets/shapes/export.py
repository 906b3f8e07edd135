"""Writes the data set: folders, annotation formats, and the promise of all or nothing."""

import contextlib
import fcntl
import json
import operator
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
from rich.console import Console
from rich.progress import track

from mmlocal.datasets.shapes.render import CLASSES, Scene, draw_scene

TASKS = ("det", "seg", "cls")
SPLITS = ("train", "val")
MANIFEST = "shapes.json"
VERSION = 2  # goes up when the same arguments give other files
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

    The same arguments give the same bytes with the same versions of NumPy, OpenCV and Shapely, and
    picture ``i`` of a split does not depend on how many pictures there are.

    All files are written to a hidden folder beside ``out_dir`` that is renamed at the end: whenever
    the process dies, ``out_dir`` is either as it was before or complete. The next run for the same
    ``out_dir`` clears what a dead one has left.

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
        BlockingIOError: another process is writing to the same ``out_dir``.
        OSError: the disk is full or ``out_dir`` cannot be written.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks={tasks!r} is a string; give a sequence such as ({tasks!r},)")
    if not tasks or set(tasks) - set(TASKS):
        raise ValueError(f"tasks={tuple(tasks)!r}: give one or more of {TASKS}")
    counts = {
        "train": _integer("num_train", num_train, 1),
        "val": _integer("num_val", num_val, 1),
    }
    arguments = {
        "tasks": [task for task in TASKS if task in tasks],
        "num_train": counts["train"],
        "num_val": counts["val"],
        "image_size": _integer("image_size", image_size, MIN_SIZE),
        "cls_size": _integer("cls_size", cls_size, MIN_SIZE),
        "seed": _integer("seed", seed, 0),
    }
    target = Path(out_dir).resolve()
    _check_target(target, overwrite)
    manifest = {
        "generator": "mmlocal.datasets.shapes",
        "version": VERSION,
        "classes": list(CLASSES),
        "arguments": arguments,
        "counts": {split: {"images": count} for split, count in counts.items()},
    }
    with _staging(target, overwrite) as root:
        _write_tasks(root, arguments, manifest["counts"], progress)
        _write_json(root / MANIFEST, manifest, indent=2)
    return manifest


def add_task(out_dir: str | os.PathLike, task: str, *, progress: bool = True) -> dict[str, Any]:
    """Adds a task to a data set, with the arguments that the data set was made with.

    All files that are there already stay. As with :func:`generate_shapes`, ``out_dir`` is at any
    time either as it was before or complete.

    Args:
        out_dir: a data set of this generator.
        task: ``"det"``, ``"seg"`` or ``"cls"``.
        progress: show a progress bar on stderr.

    Returns:
        The contents of ``shapes.json``.

    Raises:
        ValueError: an unknown task, or ``out_dir`` is no data set of this version of the generator.
        FileExistsError: ``out_dir`` holds something else.
        BlockingIOError: another process is writing to the same ``out_dir``.
        OSError: the disk is full or ``out_dir`` cannot be written.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: give one of {TASKS}")
    target = Path(out_dir).resolve()
    with _staging(target, overwrite=True) as root:
        manifest = read_manifest(target)
        if manifest is None or manifest["version"] != VERSION:
            raise ValueError(
                f"out_dir={str(target)!r} is no data set of version {VERSION} of the generator"
            )
        arguments = manifest["arguments"]
        _write_tasks(root, arguments | {"tasks": [task]}, manifest["counts"], progress)
        shutil.copytree(target, root, symlinks=True, dirs_exist_ok=True)
        tasks = {task, *arguments["tasks"]}
        arguments["tasks"] = [name for name in TASKS if name in tasks]
        _write_json(root / MANIFEST, manifest, indent=2)
    return manifest


def read_manifest(out_dir: str | os.PathLike) -> dict[str, Any] | None:
    """``shapes.json`` of a data set, or None if the folder is not one of this generator."""
    try:
        manifest = json.loads((Path(out_dir) / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("generator") == "mmlocal.datasets.shapes"
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
    images, annotations = [], []
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
    """COCO annotations, without ``id`` and ``image_id``, of what shows of each object."""
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
                "segmentation": mask_to_polygons(mask),
            }
        )
    return annotations


def semantic_map(scene: Scene) -> np.ndarray:
    """``(H, W)`` uint8: 0 for the background, else the index into ``CLASSES`` plus 1."""
    labels = np.array([shape.category + 1 for shape in scene.shapes] + [0], dtype=np.uint8)
    return labels[scene.owner]  # BACKGROUND is -1, the last entry


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Polygons that pycocotools rasterises to exactly this mask.

    They run along the edges of the pixels. A COCO polygon cannot have a hole, so a part with a hole
    is cut in two through it; a mask in several parts gives several polygons.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        One flat list ``[x0, y0, x1, y1, ...]`` for each polygon. Floats, because mmdet scales
        polygons in place and would round integers.
    """
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    stops = np.nonzero(steps == -1)[1]
    todo = _polygons(shapely.union_all(shapely.box(starts, rows, stops, rows + 1)))
    done = []
    while todo:
        part = todo.pop()
        if not part.interiors:
            ring = part.simplify(0).exterior.coords[:-1]  # without points on straight edges
            done.append([float(value) for point in ring for value in point])
            continue
        hole_left, _, hole_right, _ = part.interiors[0].bounds
        left, top, right, bottom = part.bounds
        cut = (hole_left + hole_right) // 2
        for side in (shapely.box(left, top, cut, bottom), shapely.box(cut, top, right, bottom)):
            todo += _polygons(part.intersection(side))
    return done


def _polygons(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    """The polygons in a geometry, without the lines and points that a cut may leave."""
    return [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]


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
    path.write_text(json.dumps(content, indent=indent, separators=separators) + "\n")


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
    if read_manifest(target) is not None:
        if not overwrite:
            raise FileExistsError(
                f"out_dir={str(target)!r} already holds a data set; "
                "pass overwrite=True (--overwrite) or name another folder"
            )
    elif any(target.iterdir()):
        raise FileExistsError(
            f"out_dir={str(target)!r} holds files but no data set of this generator, "
            "so it is never overwritten; name another folder"
        )


@contextlib.contextmanager
def _staging(target: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder beside ``target`` that takes its place when the block ends without error.

    The folder is locked while in use. The kernel drops the lock of a dead process, so a folder that
    exists and can be locked is stale, and one that cannot be locked belongs to a live process.
    """
    stage = target.with_name(f".{target.name}.shapes-new")
    old = target.with_name(f".{target.name}.shapes-old")
    lock = _lock_folder(target, stage)
    try:
        _put_back(old, target)
        _check_target(target, overwrite)
        _clear(stage)
        yield stage
        if target.exists():
            target.rename(old)
        stage.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        _put_back(old, target)
        shutil.rmtree(stage, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _put_back(old: Path, target: Path) -> None:
    """Undoes the first of the two renames that replace a data set, or ends what follows them."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _lock_folder(target: Path, stage: Path) -> int:
    """Makes ``stage`` and locks it; returns the open file descriptor that holds the lock."""
    while True:
        try:
            stage.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"out_dir={str(target)!r} cannot be written: {error.strerror}"
            raise type(error)(error.errno, message) from None
        # Between any two of these calls, the process that held the folder may end and rename it.
        try:
            lock = os.open(stage, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(stage)):
                return lock
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(lock)
            message = f"out_dir={str(target)!r}: another process is writing this data set"
            raise BlockingIOError(message) from None
        os.close(lock)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

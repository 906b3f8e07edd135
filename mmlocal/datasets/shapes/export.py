"""Writing of the data set to folders."""

import json
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

from mmlocal.datasets.scenes import LAYOUTS, SCENE_SIZE, write_scenes
from mmlocal.datasets.shapes.annotations import coco_annotations, semantic_map
from mmlocal.datasets.shapes.arguments import check_integer, check_names, check_scenes, in_order
from mmlocal.datasets.shapes.render import CLASSES, Scene, draw_scene
from mmlocal.files import whole_folder, write_whole

TASKS = ("det", "seg", "cls", "multitask")
DEFAULT_TASKS = ("det", "seg", "cls")
SPLITS = ("train", "val")
MANIFEST = "shapes.json"
GENERATOR = "mmlocal.datasets.shapes"  # marks our manifests among files of the same name
VERSION = 3  # increases when the same arguments give other files
MIN_SIZE = 32  # smallest picture, in pixels; MAX_SIDE * MIN_SIZE must be at least MIN_SIDE

OBJECTS_PER_IMAGE = (3, 7)
MIN_SIDE = 14.0  # smallest square root of an object's area, in pixels; a disc 16 pixels wide
MAX_SIDE = 0.68  # largest square root of an object's area, as a share of the picture's width
SPREAD = 0.75  # share of the picture's width where objects have their centres
MIN_VISIBLE = 0.8  # smallest share of an object in a scene that must show
# For the one object of a picture in the class folders.
CLS_SIDE = (0.3, 0.5)  # square root of its area, as a share of the picture's width
CLS_SPREAD = 0.2
CLS_MIN_VISIBLE = 0.9


def generate_shapes(
    out_dir: str | os.PathLike,
    *,
    tasks: Sequence[str] = DEFAULT_TASKS,
    num_train: int = 800,
    num_val: int = 200,
    image_size: int = 192,
    cls_size: int = 64,
    scene_size: Sequence[int] = SCENE_SIZE,
    layouts: Sequence[str] = ("nyud",),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the data set that :mod:`mmlocal.datasets.shapes` describes.

    The same arguments give the same bytes if the versions of NumPy and OpenCV are the same. Picture
    ``i`` of a split does not depend on the number of pictures.

    All files are written to a hidden folder next to ``out_dir``, and the folder is renamed at the
    end. So ``out_dir`` is either unchanged or complete, whenever the process ends. If two processes
    write the same data set at once, the slower one uses the files of the faster one.

    Args:
        out_dir: folder to create. It may exist if it is empty, or, with ``overwrite``, if it is a
            data set of this generator.
        tasks: one or more of ``"det"`` (COCO instances), ``"seg"`` (label maps), ``"cls"`` (class
            folders) and ``"multitask"`` (scenes in depth with labels for six tasks).
        num_train: number of pictures in ``train``, in ``cls/train`` and of scenes in depth for
            training. At least 1.
        num_val: number of pictures of each for validation. At least 1.
        image_size: width and height of the scenes in pixels, at least 32. Objects of all three COCO
            sizes need about 180 pixels or more.
        cls_size: width and height of the pictures in the class folders in pixels, at least 32.
        scene_size: height and width of the pictures for ``multitask`` in pixels, at least 64 each.
        layouts: folders for ``multitask``: ``"nyud"``, ``"pascal"`` or both.
        seed: any integer of at least 0.
        overwrite: whether to replace an existing data set. It stays until the new one is complete.
        progress: whether to show a progress bar on stderr.

    Returns:
        The contents of ``shapes.json``: ``generator``, ``version``, ``classes``, the ``arguments``
        that decide the contents, and ``counts`` of images and objects per split.

    Raises:
        ValueError: a number is out of range, or ``tasks`` or ``layouts`` is empty or has an unknown
            name.
        TypeError: a number is not an integer, or ``tasks`` or ``layouts`` is a string.
        FileExistsError: ``out_dir`` is a file, a folder with other files, or, without
            ``overwrite``, a data set.
        OSError: the disk is full or ``out_dir`` cannot be written.
    """
    arguments: dict[str, Any] = {
        "tasks": check_names("tasks", tasks, TASKS),
        "num_train": check_integer("num_train", num_train, 1),
        "num_val": check_integer("num_val", num_val, 1),
        "image_size": check_integer("image_size", image_size, MIN_SIZE),
        "cls_size": check_integer("cls_size", cls_size, MIN_SIZE),
        "seed": check_integer("seed", seed, 0),
    }
    if "multitask" in tasks:
        arguments |= check_scenes(scene_size, layouts)
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


def add_task(
    out_dir: str | os.PathLike,
    task: str,
    *,
    layouts: Sequence[str] = ("nyud",),
    progress: bool = True,
) -> dict[str, Any]:
    """Add a task to a data set, with the data set's own arguments.

    All existing files stay. ``shapes.json`` names the task only when all its files exist. If the
    process stops before, it leaves whole files and folders, and the next call completes them.

    Args:
        out_dir: a data set of this generator.
        task: ``"det"``, ``"seg"``, ``"cls"`` or ``"multitask"``.
        layouts: folders to add for ``"multitask"``: ``"nyud"``, ``"pascal"`` or both.
        progress: whether to show a progress bar on stderr.

    Returns:
        The contents of ``shapes.json``.

    Raises:
        ValueError: ``task`` is unknown, or ``out_dir`` is not a data set of this version of the
            generator.
        FileExistsError: ``out_dir`` is a file, or a folder with other files.
        OSError: the disk is full or ``out_dir`` cannot be written.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    target = Path(out_dir).resolve()
    _check_target(target, overwrite=True)
    manifest = read_manifest(target)
    if manifest is None or manifest["version"] != VERSION:
        raise ValueError(
            f"out_dir={str(target)!r} is not a data set of version {VERSION} of the generator"
        )
    arguments, counts = manifest["arguments"], manifest["counts"]
    if task == "multitask":
        arguments |= check_scenes(arguments.get("scene_size", SCENE_SIZE), layouts)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as stage:
            _write_tasks(Path(stage), arguments | {"tasks": [task]}, counts, progress)
            _move_missing(Path(stage), target)
        manifest = read_manifest(target) or manifest  # another process may have added its task
        made = manifest["arguments"]
        made["tasks"] = in_order([task, *made["tasks"]], TASKS)
        if task == "multitask":
            made["scene_size"] = arguments["scene_size"]
            made["layouts"] = in_order([*arguments["layouts"], *made.get("layouts", ())], LAYOUTS)
        for split in SPLITS:
            manifest["counts"][split].update(counts[split])
        _write_json(target / MANIFEST, manifest, indent=2)
    except OSError as error:
        raise _cannot_write(target, error) from error
    return manifest


def read_manifest(out_dir: str | os.PathLike) -> dict[str, Any] | None:
    """Read ``shapes.json`` of a data set.

    Args:
        out_dir: any path.

    Returns:
        The contents, or ``None`` if ``out_dir`` is not a data set of this generator.
    """
    try:
        manifest = json.loads((Path(out_dir) / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and manifest.get("generator") == GENERATOR
    return manifest if ours else None


def make_scene(seed: int, split: str, index: int, image_size: int) -> Scene:
    """Draw a scene of several objects, which may be partly covered or cut by the border.

    Args:
        seed: seed of the data set.
        split: ``"train"`` or ``"val"``.
        index: number of the scene in the split, from 0.
        image_size: width and height in pixels.

    Returns:
        The scene.
    """
    rng = _generator(seed, "scene", split, index)
    count = rng.integers(*OBJECTS_PER_IMAGE, endpoint=True)
    categories = rng.integers(len(CLASSES), size=count)
    categories[0] = index % len(CLASSES)  # no class is missing, however few the pictures
    sides = (MIN_SIDE, MAX_SIDE * image_size)
    return draw_scene(rng, image_size, categories.tolist(), sides, SPREAD, MIN_VISIBLE)


def make_class_image(seed: int, split: str, index: int, size: int) -> Scene:
    """Draw a picture for classification, with one object. The classes take turns.

    Args:
        seed: seed of the data set.
        split: ``"train"`` or ``"val"``.
        index: number of the picture in the split, from 0.
        size: width and height in pixels.

    Returns:
        The picture, as a scene of one object.
    """
    rng = _generator(seed, "cls", split, index)
    sides = (CLS_SIDE[0] * size, CLS_SIDE[1] * size)
    return draw_scene(rng, size, [index % len(CLASSES)], sides, CLS_SPREAD, CLS_MIN_VISIBLE)


def _generator(seed: int, kind: str, split: str, index: int) -> np.random.Generator:
    """Make an independent stream of random numbers for a picture."""
    return np.random.default_rng((seed, ("scene", "cls").index(kind), SPLITS.index(split), index))


def _write_tasks(root: Path, arguments: dict, counts: dict, progress: bool) -> None:
    """Write the files of ``arguments["tasks"]``, and add objects in scenes to ``counts``."""
    tasks = arguments["tasks"]
    if "det" in tasks or "seg" in tasks:
        for split in SPLITS:
            counts[split].update(_write_scenes(root, split, arguments, progress))
    if "cls" in tasks:
        for split in SPLITS:
            _write_class_folders(root, split, arguments, progress)
    if "multitask" in tasks:
        figures = write_scenes(
            root,
            {split: arguments[f"num_{split}"] for split in SPLITS},
            seed=arguments["seed"],
            size=tuple(arguments["scene_size"]),
            layouts=arguments["layouts"],
            progress=progress,
        )
        for split in SPLITS:
            counts[split]["scenes"] = figures[split]


def _write_scenes(root: Path, split: str, arguments: dict, progress: bool) -> dict[str, Any]:
    """Write one split for ``det`` and ``seg``, and return the counts for the manifest."""
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
        # The ids begin at 1, because COCO's evaluation reads the id 0 as "no object".
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


def _coco_size(area: int) -> str:
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def _bar(items: range, description: str, progress: bool) -> Iterator[int]:
    console = Console(stderr=True)
    yield from track(items, description=f"{description:13}", console=console, disable=not progress)


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write a PNG, or a JPEG without visible artefacts; the suffix of ``path`` decides.

    ``cv2.imwrite`` would not report a full disk.
    """
    full_colour = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    options = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95, *full_colour], ".png": []}[path.suffix]
    path.write_bytes(cv2.imencode(path.suffix, image, options)[1].tobytes())


def _write_json(path: Path, content: dict, indent: int | None = None) -> None:
    separators = (",", ": ") if indent else (",", ":")
    write_whole(path, json.dumps(content, indent=indent, separators=separators) + "\n")


def _check_target(target: Path, overwrite: bool) -> None:
    """Raise FileExistsError unless ``target`` is free or may be replaced."""
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
            f"out_dir={str(target)!r} holds other files than a data set of this generator, "
            "so it is never overwritten; name another folder"
        )


def _move_missing(source: Path, target: Path) -> None:
    """Move the files and folders that ``target`` lacks, each by one rename."""
    for path in source.iterdir():
        place = target / path.name
        if not place.exists():
            path.rename(place)
        elif path.is_dir():
            _move_missing(path, place)


def _cannot_write(target: Path, error: OSError) -> OSError:
    reason = error.strerror or error
    return OSError(error.errno, f"out_dir={str(target)!r} cannot be written: {reason}")

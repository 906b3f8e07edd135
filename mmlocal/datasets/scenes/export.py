"""Writing of the scenes to folders, and of the figures that a manifest keeps."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from mmlocal.datasets.scenes.compose import (
    SCENE_CLASSES,
    SOLID_CLASSES,
    compose_world,
)
from mmlocal.datasets.scenes.layouts import LAYOUTS, boxes, categories, write_files
from mmlocal.datasets.scenes.render import Scene, render_scene
from mmlocal.files import write_whole

SCENE_SIZE = (64, 96)  # height and width in pixels
MIN_SCENE_SIDE = 64  # smallest height and width: limbs are a pixel wide
SPLITS = ("train", "val")
_STREAM = 2  # of random numbers; the shapes generator has 0 and 1


def make_room_scene(seed: int, split: str, index: int, size: tuple[int, int] = SCENE_SIZE) -> Scene:
    """Draw scene ``index`` of a split.

    Args:
        seed: seed of the data set.
        split: ``"train"`` or ``"val"``.
        index: number of the scene in the split, from 0.
        size: height and width in pixels.

    Returns:
        Picture and labels.
    """
    rng = np.random.default_rng((seed, _STREAM, SPLITS.index(split), index))
    return render_scene(rng, compose_world(rng, index % len(SOLID_CLASSES)), size)


def write_scenes(
    root: Path,
    counts: dict[str, int],
    *,
    seed: int,
    size: tuple[int, int] = SCENE_SIZE,
    layouts: Sequence[str] = ("nyud",),
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Write all splits. All cores draw, and the files do not depend on their number.

    Args:
        root: folder in which the folder of each layout is made.
        counts: number of scenes of ``train`` and of ``val``.
        seed: seed of the data set.
        size: height and width in pixels.
        layouts: ``"nyud"`` and ``"pascal"``, or one of them.
        progress: whether to show a progress bar on stderr.

    Returns:
        For each split, a dict of figures. It holds ``solids``, ``solids_per_class``,
        ``pixel_shares`` of the classes, ``mean_depth`` in metres, and ``constant_depth_rmse``, the
        RMSE of a predictor that always says the mean depth of ``train``.
    """
    figures: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        solids: list[list[dict[str, Any]]] = []
        pixels, depths = np.zeros(len(SCENE_CLASSES), dtype=np.int64), np.zeros(3)
        for folder in _folders(root, layouts):
            folder.mkdir(parents=True, exist_ok=True)
        names = [f"{split}_{index + 1:06d}" for index in range(counts[split])]
        for found, shares, sums in _draw_all(root, split, names, seed, size, layouts, progress):
            solids.append(found)
            pixels += shares
            depths += sums
        for layout in layouts:
            place, lists, _ = LAYOUTS[layout]
            write_whole(root / place / lists / f"{split}.txt", "\n".join(names) + "\n")
            suffix = ".png" if layout == "nyud" else ".jpg"
            coco = _coco([name + suffix for name in names], solids, size)
            write_whole(root / place / f"boxes_{split}.json", json.dumps(coco) + "\n")
        labels = Counter(box["category_id"] for found in solids for box in found)
        figures[split] = {
            "solids": labels.total(),
            "solids_per_class": {c["name"]: labels[c["id"]] for c in categories()},
            "pixel_shares": {
                name: round(float(share), 4)
                for name, share in zip(SCENE_CLASSES, pixels / pixels.sum(), strict=True)
            },
            "mean_depth": round(float(depths[1] / depths[0]), 4),
            "constant_depth_rmse": 0.0,
        }
        constant = figures["train"]["mean_depth"]
        squares = depths[2] - 2 * constant * depths[1] + constant**2 * depths[0]
        figures[split]["constant_depth_rmse"] = round(float(np.sqrt(squares / depths[0])), 4)
    return figures


def _draw_all(
    root: Path,
    split: str,
    names: list[str],
    seed: int,
    size: tuple[int, int],
    layouts: Sequence[str],
    progress: bool,
) -> Iterator[tuple[list[dict[str, Any]], np.ndarray, np.ndarray]]:
    """Draw and write scenes; give boxes, pixels per class, and count, sum and squares of depth."""

    def draw(index: int) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
        scene = make_room_scene(seed, split, index, size)
        for layout in layouts:
            folder, _, files = LAYOUTS[layout]
            write_files(root / folder, files(scene, names[index]))
        depth = scene.depth.astype(np.float64)
        sums = np.array([depth.size, depth.sum(), np.square(depth).sum()])
        return boxes(scene), np.bincount(scene.semantic.ravel(), minlength=len(SCENE_CLASSES)), sums

    # NumPy and OpenCV let go of the interpreter's lock, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from track(
            pool.map(draw, range(len(names))),
            description=f"{split + ' rooms':13}",
            total=len(names),
            console=Console(stderr=True),
            disable=not progress,
        )


def _folders(root: Path, layouts: Sequence[str]) -> set[Path]:
    """List all folders that the files of the layouts need."""
    scene = make_room_scene(0, "train", 0, (MIN_SCENE_SIDE, MIN_SCENE_SIDE))
    found = set()
    for layout in layouts:
        folder, lists, files = LAYOUTS[layout]
        found |= {root / folder / lists} | {(root / folder / p).parent for p in files(scene, "x")}
    return found


def _coco(names: list[str], solids: list[list[dict[str, Any]]], size: tuple[int, int]) -> dict:
    """Make the contents of a COCO file. COCO's evaluation reads an id of 0 as none."""
    images = [
        {"id": i, "file_name": name, "height": size[0], "width": size[1]}
        for i, name in enumerate(names, 1)
    ]
    annotations: list[dict[str, Any]] = []
    for i, found in enumerate(solids, 1):
        annotations += [
            {"id": len(annotations) + k, "image_id": i, **box} for k, box in enumerate(found, 1)
        ]
    return {
        "info": {"description": "Generated scenes"},
        "images": images,
        "annotations": annotations,
        "categories": categories(),
    }

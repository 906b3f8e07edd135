"""Write tiny data sets in the four layouts, and say what a reader must find in them."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (36, 48)
TREES = ("NYUDv2", "NYUD_MT", "PASCALContext", "PASCAL_MT")


def write_image(path: Path, image: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    if palette:
        picture.putpalette([(7 * i) % 256 for i in range(768)])
    picture.save(path)


def write_array(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def write_mat(path: Path, **variables: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def write_names(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")


def unit_normals(rng: np.random.Generator) -> np.ndarray:
    normals = rng.normal(size=(*SIZE, 3))
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def write_nyud(
    root: Path, train: int = 3, val: int = 2, old: bool = False, extras: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """Write NYUD-v2 in the layout of DeMT, or of MTI-Net (``old``), and return its values.

    The key is the name of an image. Label maps are as the files mean them: classes from 0 and 255
    for no class.
    """
    rng = np.random.default_rng(0)
    names = [f"{i:04d}" for i in range(train + val)]
    write_names(root / "gt_sets/train.txt", names[:train])
    write_names(root / "gt_sets/val.txt", names[train:])
    found = {}
    for name in names:
        smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), SIZE[::-1])
        semseg = np.repeat(np.repeat(rng.integers(0, 41, (6, 8), dtype=np.uint8), 6, 0), 6, 1)
        depth = rng.uniform(0.5, 9.0, SIZE).astype(np.float32)
        depth[0, :4] = 0
        edge = (rng.random(SIZE) > 0.9).astype(np.uint8)
        normals = unit_normals(rng)
        write_image(root / f"images/{name}{'.jpg' if old else '.png'}", smooth)
        write_image(root / f"segmentation/{name}.png", semseg)
        write_array(root / f"depth/{name}.npy", depth)
        if old:
            normals[1, :3] = 0
            write_array(root / f"normals/{name}.npy", normals.astype(np.float32))
            write_array(root / f"edge/{name}.npy", edge.astype(np.float64))
        else:
            coded = np.round((normals + 1) / 2 * 255).astype(np.uint8)
            normals = coded.astype(np.float64) / 255 * 2 - 1
            write_image(root / f"normals/{name}.png", coded)
            write_image(root / f"edge/{name}.png", edge * 255)
        found[name] = {
            "image": smooth,
            "semseg": np.array([[255 if v == 0 else v - 1 for v in row] for row in semseg]),
            "depth": depth,
            "normals": normals,
            "edge": edge,
        }
        if extras:
            parts = rng.integers(0, 7, SIZE, dtype=np.uint8)
            sal = rng.choice(np.array([0, 127, 128, 255], np.uint8), SIZE)
            write_image(root / f"human_parts/{name}.png", parts)
            write_image(root / f"sal/{name}.png", sal)
            found[name] |= {"human_parts": parts, "sal": (sal / 255 > 0.5).astype(np.uint8)}
    return found


def annotation(things: list[tuple[int, np.ndarray, list[tuple[str, np.ndarray]]]]) -> dict:
    """The variable ``anno`` of PASCAL-Part: class, mask and parts of each thing."""
    kinds = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    objects = np.zeros((1, len(things)), dtype=kinds)
    for i, (kind, mask, parts) in enumerate(things):
        found = np.zeros((1, len(parts)), dtype=[("part_name", object), ("mask", object)])
        for j, (part, area) in enumerate(parts):
            found[0, j] = (part, area.astype(np.uint8))
        empty = np.zeros((0, 0))
        objects[0, i] = ("thing", kind, mask.astype(np.uint8), found if parts else empty)
    return {"imname": "name", "objects": objects}


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def write_pascal(root: Path, train: int = 3, val: int = 2) -> dict[str, dict[str, np.ndarray]]:
    """Write PASCAL-Context, in the one tree of both archives, and return its values.

    Image 0 has a person with parts, image 1 a person without parts and a horse with parts, and the
    others have nothing. The label maps of semantic segmentation of odd images are in another
    folder.
    """
    rng = np.random.default_rng(1)
    names = [f"2008_{i:06d}" for i in range(train + val)]
    write_names(root / "ImageSets/Context/train.txt", names[:train])
    write_names(root / "ImageSets/Context/val.txt", names[train:])
    found = {}
    for index, name in enumerate(names):
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), SIZE[::-1])
        write_image(root / f"JPEGImages/{name}.jpg", image)
        semseg = np.repeat(np.repeat(rng.integers(0, 21, (6, 8), dtype=np.uint8), 6, 0), 6, 1)
        semseg[0] = 255
        folder = "semseg/pascal-context" if index % 2 else "semseg/VOC12"
        write_image(root / folder / f"{name}.png", semseg, palette=not index % 2)
        # Grass, sky and a tree do not occur in rooms; the wall, a table and a monitor do.
        context = np.full(SIZE, 187, dtype=np.uint16)
        context[:18, 8:30] = 440
        context[10:24, 20:40] = 397
        context[20:30, 4:14] = 427
        context[30:, 40:] = 420
        write_mat(root / f"pascal-context/trainval/{name}.mat", LabelMap=context)
        coded = np.round((unit_normals(rng) + 1) / 2 * 255).astype(np.uint8)
        write_image(root / f"normals_distill/{name}.png", coded)
        normals = coded.astype(np.float64) / 255 * 2 - 1
        normals[(context == 187) | (context == 420)] = 0
        sal = rng.choice(np.array([0, 127, 128, 255], np.uint8), SIZE)
        write_image(root / f"sal_distill/{name}.png", sal)
        parts = np.zeros(SIZE, dtype=np.uint8)
        things: list = []
        if index == 0:
            inside = [
                ("torso", box(8, 20, 10, 20), 2),
                ("head", box(2, 8, 12, 18), 1),
                ("leye", box(3, 4, 13, 14), 1),
                ("rlarm", box(10, 14, 20, 26), 4),
                ("ruarm", box(9, 12, 19, 22), 3),
                ("luleg", box(20, 28, 11, 14), 5),
                ("lfoot", box(30, 33, 10, 14), 6),
            ]
            for _, mask, number in inside:
                parts[mask] = number
            person = box(2, 33, 10, 26)
            things = [
                (13, box(0, 5, 30, 40), [("head", box(0, 5, 30, 34))]),
                (15, person, [(part, mask) for part, mask, _ in inside]),
            ]
        elif index == 1:
            things = [
                (15, box(0, 9, 0, 9), []),
                (13, box(9, 30, 9, 30), [("torso", box(9, 30, 9, 30))]),
            ]
        write_mat(root / f"human_parts/{name}.mat", anno=annotation(things))
        found[name] = {
            "image": image,
            "semseg": semseg,
            "context": context,
            "normals": normals,
            "sal": (sal / 255 > 0.5).astype(np.uint8),
            "human_parts": parts,
        }
    return found

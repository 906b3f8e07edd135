"""Read the label maps of multi-task data sets from their files.

No file is executed: NumPy files are read without pickles, and SciPy reads MATLAB files as data.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np

from mmlocal.datasets.transforms.room_classes import ROOM_CLASSES
from mmlocal.tasks import IGNORE

#: Number of the merged part by the name of a part of PASCAL-Part: head, torso with neck, upper
#: arms, lower arms with hands, upper legs, lower legs with feet.
HUMAN_PARTS = {
    name: number
    for number, names in enumerate(
        (
            "hair head lear lebrow leye mouth nose rear rebrow reye",
            "neck torso",
            "luarm ruarm",
            "lhand llarm rhand rlarm",
            "luleg ruleg",
            "lfoot llleg rfoot rlleg",
        ),
        start=1,
    )
    for name in names.split()
}
_PERSON = 15  # class of PASCAL VOC


def read_label_map(
    path: str, format: str, shape: tuple[int, int], label_map: str | None = None
) -> np.ndarray:
    """Read the label map of one task.

    Args:
        path: the file.
        format: a key of :data:`FORMATS`.
        shape: height and width of the image.
        label_map: file with the label map of 459 classes, for the format ``normals_of_rooms``.

    Returns:
        ``(H, W)`` uint8 for labels, float32 for depth; ``(H, W, 3)`` float32 for normals.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or holds something else.
    """
    if format == "parts_mat":
        labels = read_parts(path, shape)
    elif format == "normals_of_rooms":
        assert label_map is not None, "the data set gives it with this format"
        labels = read_normals_of_rooms(path, label_map)
    else:
        labels = FORMATS[format](path)
    return labels


def read_classes(path: str) -> np.ndarray:
    """Classes from 0; 255 is ignored."""
    return _read_png(path, channels=1).astype(np.uint8, copy=False)


def read_classes_from_1(path: str) -> np.ndarray:
    """Classes from 1 in the file; 0 stands for no class, which is ignored."""
    labels = read_classes(path)
    return np.where(labels == 0, np.uint8(IGNORE), labels - np.uint8(1))


def read_binary_png(path: str) -> np.ndarray:
    """1 where the grey value is above half of 255, or where a file of 1 bit is white."""
    values = _read_png(path, channels=1)
    return (values if values.dtype == bool else values > 127).astype(np.uint8)


def read_binary_npy(path: str) -> np.ndarray:
    """1 where the value is above 0.5."""
    return (_read_npy(path, channels=1) > 0.5).astype(np.uint8)


def read_depth(path: str) -> np.ndarray:
    """Depth in metres. Holes, which are 0, infinite or not a number, become 0."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        depth = _read_npy(path, channels=1).astype(np.float32)
    depth[~np.isfinite(depth)] = 0
    if (depth < 0).any():
        raise ValueError(
            f"{path} has negative depth, down to {depth.min():g}; depth is in metres, and "
            "0 where it is unknown"
        )
    return depth


def read_normals_png(path: str) -> np.ndarray:
    """Normals ``2 v / 255 - 1``.

    Note:
        No value v of 8 bits stands for 0. So each pixel has a normal, also where the file is grey.
    """
    return 2 * _read_png(path, channels=3).astype(np.float32) / 255 - 1


def read_normals_npy(path: str) -> np.ndarray:
    """Normals as they are. Unknown normals, which are 0 or not finite, become 0."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        normals = _read_npy(path, channels=3).astype(np.float32)
    normals[~np.isfinite(normals).all(axis=-1)] = 0
    return normals


def read_normals_of_rooms(path: str, label_map: str) -> np.ndarray:
    """Normals of a PNG file where the label map has a class of rooms; 0 elsewhere.

    A network that was trained on rooms made these normals, so they are wrong outdoors.
    """
    normals, labels = read_normals_png(path), _read_labels_mat(label_map)
    if normals.shape[:2] != labels.shape:
        raise ValueError(
            f"{path} has {_size(normals)} pixels, and its label map {label_map} has {_size(labels)}"
        )
    normals[~np.isin(labels, list(ROOM_CLASSES.values()))] = 0
    return normals


def read_edges_mat(path: str) -> np.ndarray:
    """Boundaries: where the Laplacian of the label map is not 0, thinned to one pixel."""
    thin = _require("skimage.morphology", "scikit-image").thin
    labels = _read_labels_mat(path).astype(np.float64)
    return thin(cv2.Laplacian(labels, cv2.CV_64F, ksize=1) != 0).astype(np.uint8)


def read_parts(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Human parts 1 to 6 of a file of PASCAL-Part; 0 elsewhere, and if no person has parts."""
    parts = None
    annotation = _read_mat(path, "anno")
    try:
        for thing in annotation.ravel()[0]["objects"].ravel():
            if int(thing["class_ind"].item()) != _PERSON or not thing["parts"].size:
                continue
            if parts is None:
                parts = np.zeros(thing["mask"].shape, dtype=np.uint8)
            for part in thing["parts"].ravel():
                parts[part["mask"].astype(bool)] = HUMAN_PARTS[str(part["part_name"].item())]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no annotation of PASCAL-Part, or has an unknown part: {error!r}"
        ) from error
    return np.zeros(shape, dtype=np.uint8) if parts is None else parts


#: Readers by the name of the format.
FORMATS: dict[str, Callable[..., np.ndarray]] = {
    "classes": read_classes,
    "classes_from_1": read_classes_from_1,
    "binary_png": read_binary_png,
    "binary_npy": read_binary_npy,
    "depth_npy": read_depth,
    "normals_png": read_normals_png,
    "normals_npy": read_normals_npy,
    "normals_of_rooms": read_normals_of_rooms,
    "edge_mat": read_edges_mat,
    "parts_mat": read_parts,
}


def _read_png(path: str, channels: int) -> np.ndarray:
    """``(H, W)`` or ``(H, W, 3)``, in RGB order; uint8, or bool for a file of 1 bit."""
    content = Path(path).read_bytes()
    try:
        # Pillow keeps the numbers of files with a palette.
        image = mmcv.imfrombytes(content, flag="unchanged", backend="pillow")
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    _check_channels(path, image, channels)
    if image.dtype not in (np.uint8, bool):
        raise ValueError(f"{path} must have 8 bits for each value, got {image.dtype}")
    return image[..., ::-1] if channels == 3 else image  # mmcv's order is BGR


def _read_npy(path: str, channels: int) -> np.ndarray:
    content = Path(path).read_bytes()
    try:
        values = np.load(BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path} cannot be read as a NumPy array: {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        found = getattr(values, "dtype", type(values).__name__)
        raise ValueError(f"{path} must hold an array of real numbers, got {found}")
    if channels == 1 and values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    _check_channels(path, values, channels)
    return values


def _read_labels_mat(path: str) -> np.ndarray:
    labels = _read_mat(path, "LabelMap")
    is_matrix = isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.size > 0
    if not is_matrix or labels.dtype.kind not in "buif":
        raise ValueError(
            f"LabelMap of {path} must be a full matrix of numbers, got "
            f"{type(labels).__name__} of {labels.dtype}, {labels.shape}"
        )
    return labels


def _read_mat(path: str, name: str) -> np.ndarray:
    content = Path(path).read_bytes()
    loadmat = _require("scipy.io", "scipy").loadmat
    try:
        variables = loadmat(BytesIO(content))
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    if name not in variables:
        there = [key for key in variables if not key.startswith("__")]
        raise ValueError(f"{path} has no variable {name!r}; it has {', '.join(there) or 'none'}")
    return variables[name]


def _check_channels(path: str, values: np.ndarray, channels: int) -> None:
    if values.ndim != (2 if channels == 1 else 3) or values.shape[2:] not in ((), (channels,)):
        expected = "(H, W)" if channels == 1 else f"(H, W, {channels})"
        raise ValueError(f"{path} must have the shape {expected}, got {values.shape}")


def _size(values: np.ndarray) -> str:
    return f"{values.shape[0]}x{values.shape[1]}"


def _require(module: str, distribution: str) -> Any:
    """Import a library that only some data sets need."""
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"PASCAL-Context needs {distribution}, which is not installed; install it with: "
            f"pip install {distribution}",
            name=error.name,
        ) from error

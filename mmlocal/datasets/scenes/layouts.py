"""The files of one scene in the layouts of NYUD-v2 and of PASCAL-Context."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmlocal.datasets.scenes.compose import FIRST_SOLID, SCENE_CLASSES, SOLID_CLASSES
from mmlocal.datasets.scenes.render import Scene

PERSON = 15  # number of the class person in PASCAL
# Names of PASCAL's human parts for the labels 1 to 6.
_PART_NAMES = ("head", "torso", "luarm", "llarm", "luleg", "llleg")
# Numbers of classes in PASCAL-Context's LabelMap. NYUD-v2 has all these classes too, else a loader
# would drop the normals.
_CONTEXT = {
    "floor": 158,
    "wall": 440,
    "ceiling": 68,
    "rug": 330,
    "picture": 287,
    "ball": 10,
    "box": 37,
    "cone": 87,
    "cylinder": 55,  # can
    "person": 284,
}
# From air conditioner to bucket: numbers for further surfaces of a class.
_SPARE = (3, 9, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 43)


def nyud_files(scene: Scene, name: str) -> dict[str, bytes]:
    """Make the files of the NYUD-v2 layout, and of human parts and saliency beside them.

    Args:
        scene: picture and labels.
        name: name of the files without the suffix.

    Returns:
        Contents by path under the root.
    """
    return {
        f"images/{name}.png": _png(scene.image),
        f"segmentation/{name}.png": _png(scene.semantic + 1),
        f"depth/{name}.npy": _npy(scene.depth),
        f"normals/{name}.png": _png(encode_normals(scene.normals)),
        f"edge/{name}.png": _png(255 * scene.edges.astype(np.uint8)),
        f"human_parts/{name}.png": _png(scene.parts),
        f"sal/{name}.png": _png(255 * scene.saliency.astype(np.uint8)),
    }


def pascal_files(scene: Scene, name: str) -> dict[str, bytes]:
    """Make the files of the PASCAL-Context layout. It has no depth.

    Args:
        scene: picture and labels.
        name: name of the files without the suffix.

    Returns:
        Contents by path under the root.
    """
    return {
        f"JPEGImages/{name}.jpg": _jpeg(scene.image),
        f"semseg/pascal-context/{name}.png": _png(scene.semantic),
        f"normals_distill/{name}.png": _png(encode_normals(scene.normals)),
        f"pascal-context/trainval/{name}.mat": _mat({"LabelMap": label_map(scene)}),
        f"human_parts/{name}.mat": _mat({"anno": _annotation(scene, name)}),
        f"sal_distill/{name}.png": _png(255 * scene.saliency.astype(np.uint8)),
    }


#: For each layout: the folder, the place of the lists of pictures, the files of a scene.
LAYOUTS: dict[str, tuple[str, str, Callable[[Scene, str], dict[str, bytes]]]] = {
    "nyud": ("NYUDv2", "gt_sets", nyud_files),
    "pascal": ("PASCALContext", "ImageSets/Context", pascal_files),
}


def boxes(scene: Scene) -> list[dict[str, Any]]:
    """Make COCO annotations of the solids' visible parts, without ``id`` and ``image_id``.

    Args:
        scene: picture and labels.

    Returns:
        One annotation per solid. ``category_id`` is the label in ``segmentation``.
    """
    found = []
    for owner in range(FIRST_SOLID, len(scene.classes)):
        mask = scene.owner == owner
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        found.append(
            {
                "category_id": scene.classes[owner] + 1,
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
        )
    return found


def categories() -> list[dict[str, Any]]:
    """Make COCO's list of the classes that have boxes."""
    return [{"id": SCENE_CLASSES.index(name) + 1, "name": name} for name in SOLID_CLASSES]


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Turn unit vectors ``(H, W, 3)`` to uint8; ``2 * value / 255 - 1`` gives them back."""
    return np.rint(127.5 * (normals + 1)).astype(np.uint8)


def label_map(scene: Scene) -> np.ndarray:
    """Make PASCAL-Context's map of classes, in which every surface has a number of its own.

    Boundaries of the PASCAL layout are the changes of this map. So a second surface of a class gets
    another number, of a class that NYUD-v2 shares. Nothing else reads the numbers.

    Args:
        scene: picture and labels.

    Returns:
        ``(H, W)`` uint16.
    """
    spare, numbers = iter(_SPARE), list[int]()
    for index in scene.classes:
        own = _CONTEXT[SCENE_CLASSES[index]]
        numbers.append(next(spare) if own in numbers else own)
    return np.array(numbers, dtype=np.uint16)[scene.owner]


def _annotation(scene: Scene, name: str) -> np.ndarray:
    """Make the struct ``anno`` of PASCAL-Parts: objects with masks, people with named parts."""
    objects = []
    for owner in range(FIRST_SOLID, len(scene.classes)):
        mask = scene.owner == owner
        kind = SCENE_CLASSES[scene.classes[owner]]
        parts = np.zeros((0, 0))
        if kind == "person":
            found = [
                (part, (mask & (scene.parts == label)).astype(np.uint8))
                for label, part in enumerate(_PART_NAMES, 1)
            ]
            found = [(part, pixels) for part, pixels in found if pixels.any()]
            parts = np.array([found], dtype=[("part_name", object), ("mask", object)])[0][None]
        number = PERSON if kind == "person" else 0
        objects.append((kind, number, mask.astype(np.uint8), parts))
    fields = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    listed = np.empty((1, len(objects)), dtype=fields)
    listed[0] = objects
    anno = np.empty((1, 1), dtype=[("imname", object), ("objects", object)])
    anno[0, 0] = (name, listed)
    return anno


def _mat(content: dict[str, Any]) -> bytes:
    """Make a MATLAB file whose header does not name the time."""
    try:
        from scipy.io import savemat
    except ImportError as error:
        raise ImportError("the layout 'pascal' needs SciPy: pip install scipy") from error
    file = io.BytesIO()
    savemat(file, content, do_compression=True)
    header = b"MATLAB 5.0 MAT-file, generated scenes".ljust(116)
    return header + file.getvalue()[116:]


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _png(image: np.ndarray) -> bytes:
    return _encode(".png", image, [])


def _jpeg(image: np.ndarray) -> bytes:
    full_colour = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95, *full_colour])


def _encode(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    image = image[..., ::-1] if image.ndim == 3 else image  # OpenCV takes BGR
    return cv2.imencode(suffix, image, options)[1].tobytes()


def write_files(root: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder. Their folders must exist."""
    for path, content in files.items():
        (root / path).write_bytes(content)

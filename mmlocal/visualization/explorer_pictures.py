"""Pictures for the page that shows attention: files of visitors, examples, and files to save."""

from __future__ import annotations

import importlib.util
import io
import itertools
import shutil
import time
import zipfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmlocal.datasets.scenes import make_room_scene
from mmlocal.datasets.shapes.export import make_class_image, make_scene
from mmlocal.errors import UsageError

# Pillow tries no other decoder. Some of the others start programs, such as Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 64_000_000

# Files that every scikit-image brings. Its own functions download files that are missing.
_PHOTOGRAPHS = {
    "cat": "chelsea.png",
    "astronaut": "astronaut.png",
    "coffee": "coffee.png",
}


@dataclass(frozen=True)
class Photograph:
    """A picture from a file.

    Args:
        name: name of the file.
        image: ``(h, w, 3)`` uint8 in RGB, upright, possibly scaled down.
        file_size: height and width in the file, in pixels, upright.
    """

    name: str
    image: np.ndarray
    file_size: tuple[int, int]


def read_photograph(path: str | Path, longest_side: int) -> Photograph:
    """Read a picture that a stranger gives.

    Args:
        path: path of the file.
        longest_side: largest width and height of the result, in pixels. Larger pictures are scaled
            down.

    Returns:
        The picture. The orientation that a camera notes in the file is applied.

    Raises:
        UsageError: the file is missing, empty, damaged, huge, or no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path.name!r} is not a file")
    if not path.stat().st_size:
        raise UsageError(f"{path.name!r} is empty; choose another file")
    known = ", ".join(FORMATS)
    try:
        with Image.open(path, formats=FORMATS) as file:
            width, height = file.size
            if width * height > MOST_PIXELS:
                raise UsageError(_too_large(path.name, f"{width}x{height} pixels"))
            file.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
            picture = ImageOps.exif_transpose(file)
            turned = (picture.width < picture.height) != (width < height)
            image = _as_rgb(picture, path.name, sixteen_bits=file.format == "PNG")
    except UsageError:
        raise
    except UnidentifiedImageError as error:
        raise UsageError(f"{path.name!r} is not a picture in a known format ({known})") from error
    except Image.DecompressionBombError as error:
        raise UsageError(_too_large(path.name, "too many pixels")) from error
    except Exception as error:  # the decoders raise errors of many types
        raise UsageError(f"{path.name!r} is damaged: {error}") from error
    return Photograph(path.name, image, (width, height) if turned else (height, width))


def _as_rgb(picture: Any, name: str, sixteen_bits: bool) -> np.ndarray:
    """Convert a picture of Pillow to 8 bits. Pillow itself makes larger numbers white.

    Args:
        picture: the picture.
        name: name of its file.
        sixteen_bits: whether its format has at most 16 bits, which older Pillow reads as 32.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and sixteen_bits):
        grey = (np.array(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise UsageError(
            f"{name!r} has pixels of 32 bits, whose black and white are unknown; save it with 8 or "
            "16 bits"
        )
    return np.array(picture.convert("RGB"))


def _too_large(name: str, found: str) -> str:
    most = MOST_PIXELS // 1_000_000
    return f"{name!r} has {found}, and the most is {most} million; scale it down before"


def example_pictures(first: str = "cat") -> dict[str, np.ndarray]:
    """Pictures to begin with: some that scikit-image ships, if it is here, and generated ones.

    Args:
        first: name of the example that comes first, if it is here: ``"one shape"``, ``"shapes"``,
            ``"room"``, or a photograph.

    Returns:
        Name -> ``(h, w, 3)`` uint8 in RGB.
    """
    found = {}
    spec = importlib.util.find_spec("skimage")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "data"
        for name, file in _PHOTOGRAPHS.items():
            picture = cv2.imread(str(folder / file)) if (folder / file).is_file() else None
            if picture is not None:
                found[name] = picture[..., ::-1].copy()
    found["one shape"] = make_class_image(0, "val", 8, 64).image[..., ::-1].copy()
    found["shapes"] = make_scene(0, "val", 3, 192).image[..., ::-1].copy()
    found["room"] = make_room_scene(0, "val", 4, (128, 192)).image  # in RGB, unlike the others
    return dict(sorted(found.items(), key=lambda item: item[0] != first))


def encode_png(image: np.ndarray) -> bytes:
    """Encode a picture as PNG.

    Args:
        image: ``(h, w, 3)`` uint8 in RGB.
    """
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def pack_pictures(files: Mapping[str, bytes]) -> bytes:
    """Put encoded pictures into one ZIP file.

    Args:
        files: name of each file -> its content.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


class TemporaryFiles:
    """Files in a folder, each with a name that people see when they save it.

    Args:
        folder: folder for the files. It need not exist.
        seconds: age after which the next call of :meth:`write` removes a file.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self._numbers = itertools.count()
        self._written: deque[tuple[float, Path]] = deque()

    def write(self, name: str, content: bytes) -> str:
        """Write a file into a folder of its own, and return its path.

        Args:
            name: name of the file.
            content: the whole content.
        """
        now = time.monotonic()
        while self._written and now - self._written[0][0] > self.seconds:
            shutil.rmtree(self._written.popleft()[1], ignore_errors=True)
        folder = self.folder / str(next(self._numbers))
        folder.mkdir(parents=True)
        self._written.append((now, folder))
        path = folder / name
        path.write_bytes(content)
        return str(path)

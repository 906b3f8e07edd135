"""The choice of layers, and a run on one image, for the commands that draw attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel

from mmlocal.cli.config import innermost_test_dataset
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of
from mmlocal.libraries.config_parts import type_name

_Layer = TypeVar("_Layer")
_Records = TypeVar("_Records")


def check_paths(image: str, out_dir: Path) -> None:
    """Check that an image can be read, and that a folder can be made.

    Args:
        image: path of the image.
        out_dir: path of the folder.

    Raises:
        UsageError: ``image`` is no picture, or ``out_dir`` is a file.
    """
    if not Path(image).is_file():
        raise UsageError(f"image {image!r} is not a file")
    if not cv2.haveImageReader(image) or cv2.imread(image) is None:
        raise UsageError(f"image {image!r} is not a picture that OpenCV can read")
    for folder in (out_dir, *out_dir.parents):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{str(folder)!r} is a file", argument="out_dir")


def select_layers(
    layers: Mapping[str, _Layer], patterns: Sequence[str] | None, kind: str
) -> dict[str, _Layer]:
    """Select layers by their names.

    Args:
        layers: layers by name.
        patterns: names, with ``*`` for any text; ``None`` for all layers.
        kind: name of these layers for the message, such as ``"local attention"``.

    Raises:
        UsageError: a pattern matches no layer.
    """
    selected: set[str] = set()
    for pattern in patterns or ["*"]:
        found = {name for name in layers if fnmatchcase(name, pattern)}
        if not found:
            near = get_close_matches(pattern, layers, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(
                f"no layer of {kind} matches {pattern!r}; {hint}--list-layers prints all "
                f"{len(layers)}",
                argument="layers",
            )
        selected |= found
    return {name: layer for name, layer in layers.items() if name in selected}


def load_input(cfg: Config, path: str) -> tuple[np.ndarray, dict]:
    """Send an image through the test pipeline of a config, without the steps that load labels.

    Args:
        cfg: whole config.
        path: path of the image.

    Returns:
        The image as the network sees it, ``(h, w, 3)`` uint8 in RGB, and the item for the network.
    """
    loaders = library_of(cfg).label_loaders
    pipeline = innermost_test_dataset(cfg).pipeline
    steps = [step for step in pipeline if type_name(step["type"]) not in loaders]
    item = Compose(steps)(dict(img_path=path, img_id=0))
    return item["inputs"].permute(1, 2, 0).clamp(0, 255).byte().numpy()[..., ::-1], item


def pad_to_input(model: BaseModel, item: dict, image: np.ndarray) -> np.ndarray:
    """Pad an image to the input of the network, as the data preprocessor of the model pads it.

    Args:
        model: the model.
        item: item of :func:`load_input`.
        image: image of :func:`load_input`.

    Returns:
        The image, with black pixels on the right and at the bottom.
    """
    inputs = model.data_preprocessor(pseudo_collate([item]), False)["inputs"]
    height, width = inputs[0].shape[1:]
    bottom, right = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, bottom), (0, right), (0, 0)))


def run_model(
    model: BaseModel, item: dict, path: str, records: AbstractContextManager[_Records]
) -> tuple[tuple[int, int], _Records, Any]:
    """Predict one image, while a context records something of the layers.

    Args:
        model: the model, in evaluation mode.
        item: item of :func:`load_input`.
        path: path of the image, for the message of an error.
        records: context around the prediction.

    Returns:
        Height and width of the network's input after padding, the value of ``records``, and the
        prediction.

    Raises:
        UsageError: the model does not take this image.
    """
    with torch.no_grad(), records as recorded:
        data = model.data_preprocessor(pseudo_collate([item]), False)
        try:
            results = model(**data, mode="predict")
        except ValueError as error:
            raise UsageError(f"the model cannot take image {path!r}: {error}") from error
    return tuple(data["inputs"][0].shape[1:]), recorded, results[0]

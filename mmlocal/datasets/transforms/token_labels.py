"""Label maps of token labelling, which follow the crop and the flip of their image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import TRANSFORMS as MMCV_TRANSFORMS
from mmcv.transforms import BaseTransform
from torch import Tensor

from mmlocal.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RecordCrop(BaseTransform):
    """Crop an image at random, and record the place for :class:`LoadTokenLabels`.

    The recorded ``crop_box`` has the left, top, right and bottom side of the crop, as shares of the
    image as it was loaded. A horizontal flip may come before or after this step::

        dict(type="mmlocal.RecordCrop", crop=dict(type="RandomResizedCrop", scale=224))

    Args:
        crop: config of mmpretrain's ``RandomResizedCrop``, or of a step that also draws nothing but
            ``rand_crop_params(img)``, from NumPy's global generator.

    Raises:
        TypeError: ``crop`` draws its crop in another way.
    """

    def __init__(self, crop: dict) -> None:
        self.crop = MMCV_TRANSFORMS.build(crop)
        if not hasattr(self.crop, "rand_crop_params"):
            raise TypeError(
                "crop must be RandomResizedCrop or another step with rand_crop_params, got "
                f"{type(self.crop).__name__}"
            )

    def transform(self, results: dict) -> dict:
        """Crop ``img``, and add ``crop_box``."""
        height, width = results["img"].shape[:2]
        state = np.random.get_state()  # noqa: NPY002 - mmpretrain draws from this one
        top, left, rows, columns = self.crop.rand_crop_params(results["img"])
        np.random.set_state(state)  # noqa: NPY002 - the crop draws the same numbers again
        results = self.crop(results)
        box = np.array(
            [left / width, top / height, (left + columns) / width, (top + rows) / height],
            dtype=np.float32,
        )
        results["crop_box"] = mirror_box(box) if results.get("flip") else box
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(crop={self.crop})"


@TRANSFORMS.register_module()
class LoadTokenLabels(BaseTransform):
    """Load the label map of an image, and flip it with the image.

    A map is a file of ``torch.save``: a tensor ``(2, K, H, W)`` with the logits and the indices of
    the K best classes in each place. The official maps of ImageNet are ``(2, 5, 18, 18)``, in half
    precision. The map of ``.../n01440764/n01440764_10026.JPEG`` is
    ``label_root/n01440764/n01440764_10026.pt``. The file is read without running code from it.

    The step comes after all crops and flips, and before ``PackInputs``, which must pass on the
    results::

        dict(type="mmlocal.LoadTokenLabels", label_root="data/imagenet_token_labels"),
        dict(type="PackInputs", algorithm_keys=("token_labels", "token_box")),

    It adds ``token_labels``, the map as a tensor, and ``token_box``, a float32 tensor of the left,
    top, right and bottom side of the crop, as shares of the flipped image.

    Args:
        label_root: folder of the maps; ``None`` for no maps. Then
            ``mmlocal.TokenLabelHead`` gives all tokens the label of the image.

    Raises:
        TypeError: ``label_root`` is neither a path nor ``None``.

    Note:
        Only the crop of :class:`RecordCrop` and a horizontal flip by ``RandomFlip`` move the map.

    Source:
        All Tokens Matter: Token Labeling for Training Better Vision Transformers, Jiang et al.
        2021, https://arxiv.org/abs/2104.10858, and its official code.
    """

    def __init__(self, label_root: str | Path | None) -> None:
        if not isinstance(label_root, (str, Path, type(None))):
            raise TypeError(f"label_root must be a folder or None, got {label_root!r}")
        self.label_root = label_root

    def transform(self, results: dict) -> dict:
        """Add ``token_labels`` and ``token_box``.

        Raises:
            FileNotFoundError: the image has no map.
            ValueError: the file of the map is damaged or holds something else, no step recorded
                a crop, or the image was not flipped horizontally.
        """
        if self.label_root is None:
            return results
        if "crop_box" not in results:
            raise ValueError(
                "mmlocal.LoadTokenLabels needs the place of the crop; put the crop before it, as "
                'dict(type="mmlocal.RecordCrop", crop=dict(type="RandomResizedCrop", ...))'
            )
        image = Path(results["img_path"])
        labels = load_label_map(Path(self.label_root, image.parent.name, f"{image.stem}.pt"))
        box = results["crop_box"]
        if results.get("flip"):
            if results["flip_direction"] != "horizontal":
                raise ValueError(
                    "mmlocal.LoadTokenLabels follows horizontal flips only, got "
                    f"{results['flip_direction']!r}"
                )
            labels, box = labels.flip(-1), mirror_box(box)
        results["token_labels"] = labels
        results["token_box"] = torch.from_numpy(box)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(label_root={str(self.label_root)!r})"


def mirror_box(box: np.ndarray) -> np.ndarray:
    """Mirror a box ``(left, top, right, bottom)``, in shares of an image, with the image."""
    left, top, right, bottom = box
    return np.array([1 - right, top, 1 - left, bottom], dtype=box.dtype)


def load_label_map(path: Path) -> Tensor:
    """Load a label map.

    Args:
        path: file of ``torch.save``.

    Returns:
        ``(2, K, H, W)``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no label map {path}; label_root must be a folder of .pt files by class, or "
            "None to train without label maps"
        )
    try:
        labels: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        name = type(error).__name__
        raise ValueError(f"the label map {path} cannot be read safely ({name})") from error
    if not isinstance(labels, Tensor) or labels.dim() != 4 or len(labels) != 2:
        found = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(
            f"the label map {path} must be a tensor (2, K, H, W) of logits and classes, got {found}"
        )
    return labels

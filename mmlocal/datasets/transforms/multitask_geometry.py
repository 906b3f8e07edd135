"""Scale, crop, flip and pad an image together with the label maps of all its tasks.

Boxes of objects follow, if there are any.

The random numbers come from NumPy's global generator, as in mmcv and mmseg.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from mmlocal.datasets.transforms.multitask_boxes import clip_boxes, flip_boxes, move_boxes
from mmlocal.registry import TRANSFORMS
from mmlocal.tasks import IGNORE, TASKS, Task

_TRIES = 10  # crops that RandomCrop of mmseg, DeMT and ATRC look at


def maps_of(results: dict) -> Iterator[tuple[Task, np.ndarray]]:
    """The label maps in ``results``, each with its task."""
    for task in TASKS.values():
        if task.gt_key in results:
            yield task, results[task.gt_key]


@TRANSFORMS.register_module()
class MultiTaskRandomScale(BaseTransform):
    """Scale image and label maps by one random factor.

    The image is scaled bilinearly, label maps by the nearest pixel. Depth is divided by the factor,
    because things that look twice as large are half as far away. The new size is
    ``int(side * factor)``.

    Args:
        scale_range: least and greatest factor; the factor is uniform in between.

    Raises:
        ValueError: ``scale_range`` is not two positive numbers in order.

    Note:
        DeMT scales an image of floats and drops the fractions before the photometric distortion.
        This step rounds them, so a grey value may differ by one.

    Source:
        ``RandomScaling`` in the code of DeMT and ATRC.
    """

    def __init__(self, scale_range: Sequence[float] = (0.5, 2.0)) -> None:
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range must be two factors in order, got {scale_range}")
        self.scale_range = (scale_range[0], scale_range[1])

    @cache_randomness
    def _factor(self) -> float:
        return float(np.random.uniform(*self.scale_range))  # noqa: NPY002

    def transform(self, results: dict) -> dict:
        """Scale ``img`` and the label maps; set ``img_shape`` and ``scale_factor``."""
        factor = self._factor()
        height, width = (max(1, int(side * factor)) for side in results["img"].shape[:2])
        results["img"] = mmcv.imresize(results["img"], (width, height), backend="cv2")
        for task, labels in maps_of(results):
            scaled = mmcv.imresize(labels, (width, height), interpolation="nearest", backend="cv2")
            results[task.gt_key] = scaled / np.float32(factor) if task.name == "depth" else scaled
        move_boxes(results, factor)
        results["img_shape"] = (height, width)
        results["scale_factor"] = (factor, factor)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale_range={self.scale_range})"


@TRANSFORMS.register_module()
class MultiTaskRandomCrop(BaseTransform):
    """Crop image and label maps at random, where the classes are balanced.

    A crop is drawn again, up to ten times, until it has more than one class and no class covers
    ``cat_max_ratio`` of the pixels that have a class. The eleventh crop is taken as it is. An image
    that is smaller than the crop keeps its size in that direction.

    Args:
        crop_size: height and width of the crop.
        cat_max_ratio: share of the largest class; 1 takes the first crop.

    Raises:
        ValueError: ``crop_size`` or ``cat_max_ratio`` is out of range.

    Source:
        ``RandomCrop`` in the code of DeMT and ATRC; mmseg's step of this name draws alike.
    """

    def __init__(self, crop_size: Sequence[int], cat_max_ratio: float = 0.75) -> None:
        self.crop_size = _check_size("crop_size", crop_size)
        if not 0 < cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio must be above 0 and at most 1, got {cat_max_ratio}")
        self.cat_max_ratio = cat_max_ratio

    @cache_randomness
    def _corner(self, shape: tuple[int, int], labels: np.ndarray | None) -> tuple[int, int]:
        corner = self._draw(shape)
        if labels is None:
            return corner
        for _ in range(_TRIES):
            if self._is_balanced(self._crop(labels, corner)):
                break
            corner = self._draw(shape)
        return corner

    def _draw(self, shape: tuple[int, int]) -> tuple[int, int]:
        margins = [max(side - crop, 0) for side, crop in zip(shape, self.crop_size, strict=True)]
        top, left = (int(np.random.randint(0, margin + 1)) for margin in margins)  # noqa: NPY002
        return top, left

    def _crop(self, image: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
        (top, left), (height, width) = corner, self.crop_size
        return image[top : top + height, left : left + width]

    def _is_balanced(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
        counts[IGNORE] = 0
        return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio

    def transform(self, results: dict) -> dict:
        """Crop ``img`` and the label maps; set ``img_shape``.

        Raises:
            ValueError: there is no label map of semantic segmentation to balance.
        """
        key = TASKS["semseg"].gt_key
        balanced = self.cat_max_ratio < 1
        if balanced and key not in results:
            raise ValueError(
                f"MultiTaskRandomCrop needs {key} to balance the classes, but "
                f"{results.get('img_path', 'the image')} has no labels for 'semseg'; set "
                "cat_max_ratio=1"
            )
        corner = self._corner(results["img"].shape[:2], results[key] if balanced else None)
        results["img"] = self._crop(results["img"], corner)
        for task, labels in maps_of(results):
            results[task.gt_key] = self._crop(labels, corner)
        move_boxes(results, left=-corner[1], top=-corner[0])
        clip_boxes(results)
        results["img_shape"] = results["img"].shape[:2]
        return results

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(crop_size={self.crop_size}, cat_max_ratio={self.cat_max_ratio})"
        )


@TRANSFORMS.register_module()
class MultiTaskRandomFlip(BaseTransform):
    """Flip image and label maps horizontally at random. The x component of normals is negated.

    Args:
        prob: probability of a flip.

    Raises:
        ValueError: ``prob`` is no probability.
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be from 0 to 1, got {prob}")
        self.prob = prob

    @cache_randomness
    def _is_flipped(self) -> bool:
        return bool(np.random.random() < self.prob)  # noqa: NPY002

    def transform(self, results: dict) -> dict:
        """Flip ``img`` and the label maps; set ``flip`` and ``flip_direction``."""
        results["flip"] = self._is_flipped()
        results["flip_direction"] = "horizontal" if results["flip"] else None
        if results["flip"]:
            results["img"] = mmcv.imflip(results["img"])
            for task, labels in maps_of(results):
                flipped = mmcv.imflip(labels)
                if task.name == "normals":
                    flipped = flipped * np.array([-1, 1, 1], dtype=flipped.dtype)
                results[task.gt_key] = flipped
            flip_boxes(results)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prob={self.prob})"


@TRANSFORMS.register_module()
class MultiTaskPad(BaseTransform):
    """Pad image and label maps on all four sides to at least ``size``, the image in the centre.

    The image is padded with its mean colour, which is 0 after the normalisation. A padded image is
    float32, because the mean colour is no integer. Each label map is padded with the ``pad_value``
    of its task. In a pipeline for tests, the label maps are loaded after this step. Then they keep
    the size of the image, and the model cuts the padding off its predictions.

    Args:
        size: height and width.
        pad_val: colour of the padding, in the order of the channels of ``img``, which is BGR in
            mmseg. The default is the mean of ImageNet.

    Raises:
        ValueError: ``size`` is not two positive integers.
    """

    def __init__(
        self, size: Sequence[int], pad_val: Sequence[float] = (103.53, 116.28, 123.675)
    ) -> None:
        self.size = _check_size("size", size)
        self.pad_val = tuple(pad_val)

    def transform(self, results: dict) -> dict:
        """Pad ``img`` and the label maps; set the shapes and ``padding_size``.

        ``padding_size`` has the pixels at the left, right, top and bottom side, as in mmseg.
        """
        shape = results["img"].shape[:2]
        rows, columns = (max(new - old, 0) for new, old in zip(self.size, shape, strict=True))
        top, left = rows // 2, columns // 2
        bottom, right = rows - top, columns - left
        if rows or columns:
            padding = (left, top, right, bottom)
            results["img"] = mmcv.impad(
                results["img"].astype(np.float32), padding=padding, pad_val=self.pad_val
            )
            for task, labels in maps_of(results):
                value = (task.pad_value,) * 3 if labels.ndim == 3 else task.pad_value
                results[task.gt_key] = mmcv.impad(labels, padding=padding, pad_val=value)
            move_boxes(results, left=left, top=top)
        results["padding_size"] = (left, right, top, bottom)
        results["img_shape"] = results["pad_shape"] = results["img"].shape[:2]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, pad_val={self.pad_val})"


def _check_size(name: str, size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"{name} must be a height and a width in pixels, got {size!r}")
    return size[0], size[1]

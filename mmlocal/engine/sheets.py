"""A hook that draws the predictions of a test on two sheets, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmlocal.registry import HOOKS
from mmlocal.visualization.masks import Mark, agreement
from mmlocal.visualization.sheets import Picture, draw_classes, draw_examples, draw_first

_BACKGROUND = "background"


@HOOKS.register_module()
class SheetHook(Hook):
    """Draw a sheet of good examples and a sheet of the first images when a test ends.

    It knows the samples of MMDetection (instances with masks), MMSegmentation (one label map) and
    MMPreTrain (one class). Masks get the colours in the data set's ``metainfo``.

    Writes to ``folder``:

    - ``predictions.jpg``: image, truth and prediction of a few images, without scores. These are
      the images with the highest panoptic quality, among those with several objects. For classes,
      it shows images at equal distances in the test, good or bad;
    - ``first_images.jpg``: truth and prediction of the first images of the test, whatever their
      quality, with the scores in percent. There is none for classes.

    Args:
        folder: folder for the sheets, which must exist.
        threshold: lowest score of an instance to draw.
        columns: number of good examples.
        objects: number of true objects or classes that a good example has at least, if there are
            enough such images.
        first: number of images on the second sheet.
        classes: number of images with classes.
    """

    def __init__(
        self,
        folder: str,
        threshold: float = 0.6,
        columns: int = 5,
        objects: int = 5,
        first: int = 12,
        classes: int = 24,
    ) -> None:
        self.folder = Path(folder)
        self.threshold = threshold
        self.columns, self.objects = columns, objects
        self.first, self.classes = first, classes
        self._number = 0
        self._first: list[Picture] = []
        self._good: list[tuple[tuple[bool, float], Picture]] = []

    def before_test_epoch(self, runner: Any) -> None:
        """Forget the pictures of an earlier test.

        Raises:
            FileNotFoundError: ``folder`` does not exist.
        """
        if not self.folder.is_dir():
            raise FileNotFoundError(f"folder must exist, got {str(self.folder)!r}")
        self._number, self._first, self._good = 0, [], []

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keep the pictures of both sheets."""
        names = runner.test_dataloader.dataset.metainfo.get("classes", ())
        stride = max(1, len(runner.test_dataloader.dataset) // self.classes)
        for sample in outputs or ():
            picture = _picture_of(sample, self.threshold, names)
            number, self._number = self._number, self._number + 1
            if picture.classes is not None:  # a data set is often sorted by its classes
                if number % stride == 0:
                    self._first.append(picture)
                continue
            if number < self.first:
                self._first.append(picture)
            quality = agreement(picture.truth, picture.prediction)
            self._good.append(((len(picture.truth) >= self.objects, quality), picture))
            self._good.sort(key=lambda entry: entry[0], reverse=True)
            del self._good[self.columns :]

    @master_only
    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Draw the sheets."""
        meta = runner.test_dataloader.dataset.metainfo
        names, palette = meta.get("classes", ()), meta.get("palette", ())
        sheets = [self.folder / name for name in ("predictions.jpg", "first_images.jpg")]
        if self._first and self._first[0].classes is not None:
            # Division may leave one more.
            draw_classes(self._first[: self.classes], sheets[0], names)
        elif self._first:
            legend = {
                name: tuple(colour)
                for name, colour in zip(names, palette, strict=False)
                if name != _BACKGROUND
            }
            draw_examples([picture for _, picture in self._good], sheets[0], palette, legend)
            draw_first(self._first, sheets[1], palette, legend, self.threshold)


def _picture_of(sample: Any, threshold: float, names: Sequence[str]) -> Picture:
    """Gather image, truth and prediction of a data sample.

    Raises:
        ValueError: the sample is of another kind.
    """
    pixels = cv2.imread(str(sample.metainfo["img_path"]))
    if pixels is None:
        raise ValueError(f"img_path {sample.metainfo['img_path']!r} of a sample cannot be read")
    image = np.ascontiguousarray(pixels[..., ::-1])
    if "pred_instances" in sample:
        found = sample.pred_instances
        found = found[found.scores >= threshold]
        return Picture(image, _instances(sample.gt_instances, image), _instances(found, image))
    if "pred_sem_seg" in sample:
        truth, found = (
            _array(labels.data[0]) for labels in (sample.gt_sem_seg, sample.pred_sem_seg)
        )
        return Picture(image, _classes(truth, names), _classes(found, names))
    if "pred_label" in sample:
        found, scores = int(sample.pred_label), _array(sample.pred_score)
        return Picture(image, classes=(int(sample.gt_label), found, float(scores[found])))
    raise ValueError(
        f"outputs must have pred_instances, pred_sem_seg or pred_label, got {sample.keys()}"
    )


def _instances(instances: Any, image: np.ndarray) -> list[Mark]:
    masks = instances.masks
    masks = masks.to_ndarray() if hasattr(masks, "to_ndarray") else _array(masks)
    height, width = image.shape[:2]  # the masks of a batch may be padded
    labels = _array(instances.labels)
    scores = _array(instances.scores) if "scores" in instances else [None] * len(labels)
    marks = [
        Mark(mask[:height, :width].astype(bool), int(label), score)
        for mask, label, score in zip(masks, labels, scores, strict=True)
    ]
    return [mark for mark in marks if mark.mask.any()]


def _classes(labels: np.ndarray, names: Sequence[str]) -> list[Mark]:
    """One mark for each class of a label map. Background and ignored pixels have none."""
    return [
        Mark(labels == label, int(label))
        for label in np.unique(labels)
        if label < len(names) and names[label] != _BACKGROUND
    ]


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)

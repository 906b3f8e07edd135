"""A hook that draws the predictions of a test on two sheets, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmlocal.visualization.masks import Mark, agreement, draw_marks, inner_point
from mmlocal.visualization.panels import Panel, draw_sheet

_BACKGROUND = "background"
_GREEN, _RED = "#1a7f37", "#c01c28"


@dataclass(frozen=True, eq=False)
class _Picture:
    """An image with masks, or with one class for all of it."""

    image: np.ndarray
    truth: list[Mark] = field(default_factory=list)
    prediction: list[Mark] = field(default_factory=list)
    classes: tuple[int, int, float] | None = None  # true, predicted, and its score


class SheetHook(Hook):
    """Draw a sheet of good examples and a sheet of the first images when a test ends.

    It knows the samples of MMDetection (instances with masks), MMSegmentation (one label map) and
    MMPreTrain (one class). Masks get the colours in the data set's ``metainfo``. A config names the
    hook by ``type="mmlocal.visualization.sheets.SheetHook"``.

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
        self._first: list[_Picture] = []
        self._good: list[tuple[tuple[bool, float], _Picture]] = []

    def before_test_epoch(self, runner: Any) -> None:
        """Forget the pictures of an earlier test."""
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
        if self._first and self._first[0].classes is not None:
            self._draw_classes(names)
        elif self._first:
            legend = {
                name: tuple(colour)
                for name, colour in zip(names, palette, strict=True)
                if name != _BACKGROUND
            }
            self._draw_good(palette, legend)
            self._draw_first(palette, legend)

    def _draw_good(self, palette: Sequence, legend: dict) -> None:
        pictures = [picture for _, picture in self._good]
        scale = _scale(pictures[0])
        size = (pictures[0].image.shape[1] * scale, pictures[0].image.shape[0] * scale)
        rows = [
            ("image", [Panel(cv2.resize(p.image, size)) for p in pictures]),
            ("truth", [Panel(draw_marks(p.image, p.truth, palette, scale)) for p in pictures]),
            (
                "prediction",
                [Panel(draw_marks(p.image, p.prediction, palette, scale)) for p in pictures],
            ),
        ]
        draw_sheet(rows, self.folder / "predictions.jpg", legend)

    def _draw_first(self, palette: Sequence, legend: dict) -> None:
        pictures = self._first
        scale = _scale(pictures[0])
        rows: list[tuple[str, list[Panel]]] = []
        for begin in range(0, len(pictures), 4):
            part = pictures[begin : begin + 4]
            truth = [Panel(draw_marks(p.image, p.truth, palette, scale)) for p in part]
            prediction = [
                Panel(draw_marks(p.image, p.prediction, palette, scale), texts=_scores(p, scale))
                for p in part
            ]
            rows += [("truth", truth), ("prediction", prediction), ("", [])]
        shown = any(panel.texts for _, panels in rows for panel in panels)
        note = f", scores from {self.threshold:.0%} up, in percent" if shown else ""
        title = f"The first {len(pictures)} images of the test{note}"
        draw_sheet(rows[:-1], self.folder / "first_images.jpg", legend, title, width=1000)

    def _draw_classes(self, names: Sequence[str]) -> None:
        pictures = self._first[: self.classes]  # division may leave one more
        panels = []
        for picture in pictures:
            true, found, score = picture.classes or (0, 0, 0.0)
            right = true == found
            text = f"{names[found]} {score:.0%}"
            title = text if right else f"{text}\ntruth: {names[true]}"
            size = tuple(length * 3 for length in picture.image.shape[1::-1])
            image = cv2.resize(picture.image, size, interpolation=cv2.INTER_CUBIC)
            panels.append(Panel(image, title, _GREEN if right else _RED))
        rows = [("", panels[begin : begin + 8]) for begin in range(0, len(panels), 8)]
        title = f"Predictions for {len(pictures)} images: green is right, red is wrong"
        draw_sheet(rows, self.folder / "predictions.jpg", title=title)


def _picture_of(sample: Any, threshold: float, names: Sequence[str]) -> _Picture:
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
        return _Picture(image, _instances(sample.gt_instances, image), _instances(found, image))
    if "pred_sem_seg" in sample:
        truth, found = (
            _array(labels.data[0]) for labels in (sample.gt_sem_seg, sample.pred_sem_seg)
        )
        return _Picture(image, _classes(truth, names), _classes(found, names))
    if "pred_label" in sample:
        found, scores = int(sample.pred_label), _array(sample.pred_score)
        return _Picture(image, classes=(int(sample.gt_label), found, float(scores[found])))
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


def _scale(picture: _Picture) -> int:
    """Factor that makes a picture about 400 pixels wide."""
    return max(1, round(400 / picture.image.shape[1]))


def _scores(picture: _Picture, scale: int) -> list[tuple[float, float, str]]:
    texts = []
    for mark in picture.prediction:
        if mark.score is not None:
            x, y = inner_point(mark.mask)
            texts.append(((x + 0.5) * scale, (y + 0.5) * scale, f"{mark.score * 100:.0f}"))
    return texts

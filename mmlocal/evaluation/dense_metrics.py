"""Metrics of single dense tasks, as sums over pixels.

Each image gives a short vector of sums. The vectors of all images add up to the vector of the set,
and the metric is a function of it. A set therefore has the same value for any batch size and any
number of processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from mmlocal.tasks import IGNORE


class DenseMetric(ABC):
    """The metric of one task.

    The class is a pair of functions: sums of one image, and the value for sums of a set.
    """

    @abstractmethod
    def sums(self, pred: Tensor, label: Tensor) -> Tensor:
        """Sum over the valid pixels of one image.

        Args:
            pred: prediction, ``(C, H, W)``.
            label: ground truth of the same shape.

        Returns:
            One vector of float64, of the same length for every image.

        Raises:
            ValueError: a map holds values that the task does not have.
        """

    @abstractmethod
    def value(self, total: np.ndarray) -> float:
        """Compute the metric.

        Args:
            total: the vectors of all images, added up.

        Returns:
            The metric; NaN if the set has no valid pixel.
        """


class MeanIoU(DenseMetric):
    """Mean intersection over union, ``sum_k |P_k ∩ L_k| / |P_k ∪ L_k| / K``.

    ``P_k`` are the pixels that are predicted as class ``k``. ``L_k`` are the pixels with this
    label. Predictions and labels are class indices, ``(1, H, W)``.

    Args:
        num_classes: number of classes ``K``.

    Raises:
        ValueError: ``num_classes`` is below 1.

    Note:
        The mean is over all classes. A class that occurs in no prediction and no label counts as 0,
        while MMSegmentation leaves it out. The published tables were made like this. Both are equal
        if all classes occur.

    Source:
        ``jaccard`` of ASTMT and ATRC; labels of 255 are ignored.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes

    def sums(self, pred: Tensor, label: Tensor) -> Tensor:
        """Count intersections, predictions and labels of each class."""
        valid = label != IGNORE
        pred, label = pred[valid].long(), label[valid].long()
        for name, classes in (("label", label), ("prediction", pred)):
            if classes.numel() and not 0 <= classes.min() <= classes.max() < self.num_classes:
                raise ValueError(
                    f"the {name} has classes from {classes.min()} to {classes.max()}, but "
                    f"num_classes is {self.num_classes}; labels are 0 to num_classes - 1, and "
                    f"{IGNORE} is ignored"
                )
        counts = [
            torch.bincount(classes, minlength=self.num_classes)
            for classes in (label[label == pred], pred, label)
        ]
        return torch.cat(counts).double()

    def value(self, total: np.ndarray) -> float:
        """Average the classes."""
        both, pred, label = total.reshape(3, self.num_classes)
        if not label.any():
            return math.nan
        union = pred + label - both
        return float(np.mean(both / np.maximum(union, 1)))


class MaxF(DenseMetric):
    """Largest F-measure over 19 thresholds, with ``beta**2 = 0.3``.

    Predictions are probabilities and labels are 0 or 1, ``(1, H, W)``. A pixel is predicted as
    salient from the threshold on. A prediction that is not a number is below all thresholds. The
    thresholds are 0.05, 0.10, ..., 0.95. At each of them, ::

        F = (1 + beta**2) * P * R / (beta**2 * P + R)

    with precision ``P`` and recall ``R`` over all valid pixels of the set. ``F`` is 0 if ``P`` or
    ``R`` is 0/0.

    Note:
        Salient object detection mostly reports a mean over images of 255 thresholds, which has
        other values.

    Source:
        ``PixelwiseF`` of ASTMT and ATRC; labels of 255 are ignored.
    """

    thresholds = torch.arange(1, 20) / 20

    def sums(self, pred: Tensor, label: Tensor) -> Tensor:
        """Count true positives and predicted positives of each threshold, positives and pixels."""
        valid = label != IGNORE
        pred, positive = pred[valid].float(), label[valid]
        if ((positive != 0) & (positive != 1)).any():
            raise ValueError(f"the label must hold 0, 1 and {IGNORE} (ignored) only")
        positive = positive.bool()
        # The k-th bin holds predictions from the k-th threshold up to the next.
        bins = torch.bucketize(pred.nan_to_num(), self.thresholds.to(pred.device), right=True)

        def at_least(bins: Tensor) -> Tensor:
            counts = torch.bincount(bins, minlength=len(self.thresholds) + 1)
            return counts.flip(0).cumsum(0).flip(0)[1:]

        pixels = torch.stack([positive.sum(), valid.sum()])
        return torch.cat([at_least(bins[positive]), at_least(bins), pixels]).double()

    def value(self, total: np.ndarray) -> float:
        """Take the best threshold."""
        if total[-1] == 0:
            return math.nan
        (true, predicted), actual = total[:-2].reshape(2, -1), total[-2]
        with np.errstate(divide="ignore", invalid="ignore"):
            precision, recall = true / predicted, true / actual
            f = 1.3 * precision * recall / (0.3 * precision + recall)
        return float(np.nan_to_num(f).max())


class RMSE(DenseMetric):
    """Root of the mean squared error over all valid pixels of the set.

    Predictions and labels are depths in metres, ``(1, H, W)``. Negative predictions count as 0.

    Note:
        The original ignores labels of 0 only. Its pipeline, however, marks holes by 255, so a hole
        would count as a depth of 255 m. We ignore 0, 255 and values that are not finite. Sets
        without holes have equal values.

    Source:
        ``DepthMeter`` of ASTMT and ATRC. It does not average over images.
    """

    def sums(self, pred: Tensor, label: Tensor) -> Tensor:
        """Sum the squared errors, and count the pixels."""
        valid = (label != 0) & (label != IGNORE) & label.isfinite()
        error = pred[valid].double().clamp(min=0) - label[valid].double()
        return torch.stack([error.square().sum(), valid.sum()])

    def value(self, total: np.ndarray) -> float:
        """Take the root of the mean."""
        squares, pixels = total
        return math.sqrt(squares / pixels) if pixels else math.nan


class MeanAngle(DenseMetric):
    """Mean angle between predicted and true normals over all valid pixels of the set, in degrees.

    Predictions and labels are vectors of any length, ``(3, H, W)``. They are normalised, and the
    angle is ``2 * atan2(|p - t|, |p + t|)``.

    Source:
        ``NormalsMeter`` of ASTMT and ATRC. A pixel is ignored if a component of its label is 255.
    """

    def sums(self, pred: Tensor, label: Tensor) -> Tensor:
        """Sum the angles, and count the pixels."""
        valid = ((label != IGNORE) & label.isfinite()).all(0)
        p = torch.nn.functional.normalize(pred[:, valid].double(), dim=0)
        t = torch.nn.functional.normalize(label[:, valid].double(), dim=0)
        angle = 2 * torch.atan2((p - t).norm(dim=0), (p + t).norm(dim=0))
        return torch.stack([angle.rad2deg().sum(), valid.sum()])

    def value(self, total: np.ndarray) -> float:
        """Average the angles."""
        angles, pixels = total
        return float(angles / pixels) if pixels else math.nan

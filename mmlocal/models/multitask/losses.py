"""The losses of dense tasks, each a mean over the pixels with a label.

A batch without such a pixel has the loss 0 and the gradient 0, so no process of a distributed run
waits for the gradient of another.

Source:
    Code of ATRC (brdav/atrc), which DeMT uses unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import check_number, check_rate
from mmlocal.registry import MODELS
from mmlocal.tasks import IGNORE

# Shorter predictions have no direction; torch.nn.functional.normalize uses the same bound.
_SHORT = 1e-12


class _Loss(nn.Module):
    """A loss with a weight."""

    def __init__(self, loss_weight: float) -> None:
        super().__init__()
        check_number(loss_weight=loss_weight)
        self.loss_weight = loss_weight


@MODELS.register_module()
class BalancedBCELoss(_Loss):
    """Binary cross entropy with a fixed weight ``w`` of the positive pixels.

    ``loss_weight * mean(-w * y * log(p) - (1 - w) * (1 - y) * log(1 - p))`` over all valid pixels,
    where ``y`` is the label and ``p = sigmoid(pred)``.

    Args:
        pos_weight: the weight ``w``, in [0, 1]: 0.8 for NYUD-v2, 0.95 for PASCAL-Context.
        loss_weight: factor of the loss.

    Raises:
        ValueError: ``pos_weight`` is out of range.
        TypeError: an argument is not a number.
    """

    def __init__(self, pos_weight: float = 0.8, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        check_rate(pos_weight=pos_weight)
        self.pos_weight = pos_weight

    def forward(self, pred: Tensor, label: Tensor, ignore_index: int = IGNORE) -> Tensor:
        """Compute the loss.

        Args:
            pred: ``(B, 1, H, W)`` logits.
            label: ``(B, H, W)`` labels 0, 1 or ``ignore_index``.
            ignore_index: label of the pixels that do not count.

        Returns:
            A scalar.
        """
        pred = pred.squeeze(1)
        valid = label != ignore_index
        target = (label == 1).to(pred.dtype)
        losses = -self.pos_weight * target * F.logsigmoid(pred)
        losses = losses - (1 - self.pos_weight) * (1 - target) * F.logsigmoid(-pred)
        return self.loss_weight * _mean(losses, valid)


@MODELS.register_module()
class BalancedCELoss(_Loss):
    """Cross entropy of two classes, each weighted by the share of the other one in the batch.

    The sum of the weighted losses is divided by the number of valid pixels, not by the sum of their
    weights.

    Args:
        loss_weight: factor of the loss.

    Raises:
        ValueError: ``loss_weight`` is not finite.
        TypeError: ``loss_weight`` is not a number.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)

    def forward(self, pred: Tensor, label: Tensor, ignore_index: int = IGNORE) -> Tensor:
        """Compute the loss.

        Args:
            pred: ``(B, 2, H, W)`` logits.
            label: ``(B, H, W)`` labels 0, 1 or ``ignore_index``.
            ignore_index: label of the pixels that do not count.

        Returns:
            A scalar.
        """
        valid = label != ignore_index
        positives = _mean((label == 1).to(pred.dtype), valid)
        weight = torch.stack([positives, 1 - positives])
        losses = F.cross_entropy(
            pred, label, weight=weight, ignore_index=ignore_index, reduction="none"
        )
        return self.loss_weight * _mean(losses, valid)


@MODELS.register_module()
class DepthLoss(_Loss):
    """Mean absolute error of a map of depths.

    Args:
        loss_weight: factor of the loss.

    Raises:
        ValueError: ``loss_weight`` is not finite.
        TypeError: ``loss_weight`` is not a number.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)

    def forward(self, pred: Tensor, label: Tensor, ignore_index: int = IGNORE) -> Tensor:
        """Compute the loss.

        Args:
            pred: ``(B, 1, H, W)`` depths.
            label: ``(B, 1, H, W)`` depths, or ``ignore_index``.
            ignore_index: value of the pixels that do not count.

        Returns:
            A scalar.
        """
        return self.loss_weight * _mean((pred - label).abs(), label != ignore_index)


@MODELS.register_module()
class NormalLoss(_Loss):
    """Absolute error of normals: predictions get length 1, and the three components are summed.

    Args:
        loss_weight: factor of the loss.

    Raises:
        ValueError: ``loss_weight`` is not finite.
        TypeError: ``loss_weight`` is not a number.

    Note:
        A prediction has length 0 where all features of a pixel are 0. It gets the gradient of a
        prediction of length 1. The original code multiplies this gradient by 1e12.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)

    def forward(self, pred: Tensor, label: Tensor, ignore_index: int = IGNORE) -> Tensor:
        """Compute the loss.

        Args:
            pred: ``(B, 3, H, W)`` vectors of any length.
            label: ``(B, 3, H, W)`` unit vectors. A pixel does not count if one of its components is
                ``ignore_index``.
            ignore_index: value of the pixels that do not count.

        Returns:
            A scalar.
        """
        valid = (label != ignore_index).all(1)
        length = pred.norm(dim=1, keepdim=True)
        unit = pred / torch.where(length > _SHORT, length, 1)
        return self.loss_weight * _mean((unit - label).abs().sum(1), valid)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean over the valid pixels; 0 if there are none."""
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)

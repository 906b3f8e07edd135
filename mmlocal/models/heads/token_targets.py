"""Targets of token labelling, from label maps."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align


def smooth_one_hot(scores: Tensor, smoothing: float) -> Tensor:
    """Smooth the scores of labels: ``scores * (1 - smoothing) + smoothing / num_classes``.

    Args:
        scores: ``(B, num_classes)`` float, which add up to 1 in each row.
        smoothing: share of the even distribution.

    Returns:
        ``(B, num_classes)``, which also add up to 1.
    """
    return scores * (1 - smoothing) + smoothing / scores.shape[1]


def pool_label_maps(
    label_maps: Tensor,
    boxes: Tensor,
    num_classes: int,
    size: tuple[int, int],
    smoothing: float = 0.0,
    swap_axes: bool = False,
) -> Tensor:
    """Pool the crop of each label map to a grid, and turn the logits into smoothed scores.

    A map has logits of the best classes only. The other classes have logit 0. RoIAlign pools the
    crop, and ``softmax(logits) * (1 - smoothing + smoothing / num_classes) + smoothing /
    num_classes`` is the target. As in the official code, its classes add up to
    ``1 + smoothing / num_classes``.

    Args:
        label_maps: ``(B, 2, K, H, W)``, for each place the logits and the indices of K classes.
        boxes: ``(B, 4)`` left, top, right and bottom side of each crop, as shares of the image.
        num_classes: number of classes.
        size: height and width of the grid.
        smoothing: share of the label smoothing.
        swap_axes: whether to exchange x and y of the boxes, as the official code does.

    Returns:
        ``(B, num_classes, *size)`` float32.

    Source:
        All Tokens Matter, Jiang et al. 2021, https://arxiv.org/abs/2104.10858, and its official
        code.
    """
    batch, _, _, height, width = label_maps.shape
    logits = torch.zeros(batch, num_classes, height, width, device=label_maps.device)
    logits.scatter_(1, label_maps[:, 1].long(), label_maps[:, 0].float())
    boxes = boxes.float()
    if swap_axes:
        boxes = boxes[:, [1, 0, 3, 2]]
    # The centre of the first value is at 0.
    boxes = boxes * boxes.new_tensor([width, height, width, height]) - 0.5
    scores = roi_align(logits, list(boxes[:, None]), size).softmax(1)
    return scores * (1 - smoothing + smoothing / num_classes) + smoothing / num_classes


def correct_by_truth(scores: Tensor, truth: Tensor) -> Tensor:
    """Mix scores of a label map with the ground truth: ``r * scores + (1 - r) * truth``.

    ``r`` is 0.5 where both have the same best class, and 0.9 elsewhere.

    Args:
        scores: ``(B, num_classes)``.
        truth: ``(B, num_classes)``.

    Returns:
        ``(B, num_classes)``.

    Source:
        Official code of VOLO, Yuan et al. 2021, https://arxiv.org/abs/2106.13112.
    """
    agree = scores.argmax(1, keepdim=True) == truth.argmax(1, keepdim=True)
    ratio = torch.where(agree, 0.5, 0.9)
    return ratio * scores + (1 - ratio) * truth

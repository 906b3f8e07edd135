"""The tasks of a head: options, losses, labels, and predictions from outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmlocal.layers.checks import check_int
from mmlocal.models.multitask.losses import (
    BalancedBCELoss,
    BalancedCELoss,
    DepthLoss,
    NormalLoss,
)
from mmlocal.tasks import IGNORE, Task, find_tasks

# The losses and weights of ATRC and DeMT.
_LOSSES: dict[str, Callable[[], nn.Module]] = {
    "semseg": lambda: CrossEntropyLoss(avg_non_ignore=True),
    "human_parts": lambda: CrossEntropyLoss(avg_non_ignore=True, loss_weight=2.0),
    "sal": lambda: BalancedCELoss(loss_weight=5.0),
    "depth": lambda: DepthLoss(),
    "normals": lambda: NormalLoss(loss_weight=10.0),
    "edge": lambda: BalancedBCELoss(pos_weight=0.8, loss_weight=50.0),
}


def _largest(logits: Tensor) -> Tensor:
    return logits.argmax(0, keepdim=True)


# From logits (C, H, W) to a prediction.
_DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "semseg": _largest,
    "human_parts": _largest,
    "sal": lambda logits: logits.softmax(0)[1:],
    "depth": lambda logits: logits.clamp(min=0),
    "normals": lambda logits: F.normalize(logits, dim=0),
    "edge": torch.sigmoid,
}


def check_tasks(tasks: Any) -> tuple[Task, ...]:
    """Check the argument ``tasks`` of a head.

    Args:
        tasks: options of each task, by name.

    Returns:
        The tasks, in the given order.

    Raises:
        TypeError: ``tasks`` or the options of a task are not a dict, or ``num_classes`` is not an
            integer.
        ValueError: a task or an option is unknown, or ``num_classes`` is missing, below 2, or given
            for a task without classes.
    """
    if not isinstance(tasks, Mapping):
        raise TypeError(
            "tasks must be a dict of tasks and their options, such as "
            f"dict(semseg=dict(num_classes=40), depth=dict()), got {tasks!r}"
        )
    found = find_tasks(tasks)
    for task in found:
        name, options = f"tasks.{task.name}", tasks[task.name]
        if not isinstance(options, Mapping):
            raise TypeError(f"{name} must be a dict of options, got {options!r}")
        if unknown := [key for key in options if key not in ("num_classes", "loss")]:
            raise ValueError(f"{name} has the options num_classes and loss, got {unknown[0]!r}")
        if task.channels is None:
            if "num_classes" not in options:
                raise ValueError(f"{name} must have num_classes, the number of classes")
            check_int(2, **{f"{name}.num_classes": options["num_classes"]})
        elif "num_classes" in options:
            raise ValueError(
                f"{name} must not have num_classes: the task has no classes to choose, and "
                f"{task.channels} output channels"
            )
    return found


def channels_of(task: Task, options: Mapping[str, Any]) -> int:
    """The number of output channels of a task."""
    return task.channels or options["num_classes"]


def build_loss(task: Task, options: Mapping[str, Any]) -> nn.Module:
    """Build the loss of a task: the given one, or the loss of the papers."""
    cfg = options.get("loss")
    return _LOSSES[task.name]() if cfg is None else MMSEG_MODELS.build(cfg)


def decode(task: Task, logits: Tensor) -> Tensor:
    """Turn the outputs of a network into a prediction.

    Args:
        task: the task.
        logits: ``(C, H, W)``.

    Returns:
        ``semseg`` and ``human_parts``: labels ``(1, H, W)``, int64. ``sal`` and ``edge``:
        probabilities ``(1, H, W)``. ``depth``: depths of at least 0, ``(1, H, W)``. ``normals``:
        unit vectors ``(3, H, W)``.
    """
    return _DECODERS[task.name](logits)


def check_classes(task: Task, labels: Tensor, channels: int) -> None:
    """Check that the labels of a batch name classes of the head.

    On a GPU, a loss would otherwise stop the process without a reason.

    Args:
        task: the task. Measurements pass.
        labels: output of :func:`stack_labels`.
        channels: output channels of the task; one channel is for two classes.

    Raises:
        ValueError: a label is no class, and not 255.
    """
    number = max(channels, 2)
    if task.continuous or labels.numel() == 0:
        return
    wrong = labels[(labels < 0) | ((labels >= number) & (labels != IGNORE))]
    if wrong.numel():
        advice = "" if task.channels else f"; check tasks.{task.name}.num_classes of decode_head"
        raise ValueError(
            f"{task.gt_field}, the labels of the task {task.name!r}, must be from 0 to "
            f"{number - 1}, or {IGNORE} to be ignored, got {wrong[0].item()}{advice}"
        )


def stack_labels(task: Task, data_samples: Sequence[SegDataSample], size: Sequence[int]) -> Tensor:
    """Stack the label maps of a batch.

    Args:
        task: the task.
        data_samples: a sample for each image.
        size: height and width that each label map must have.

    Returns:
        ``(B, H, W)``, int64; for measurements ``(B, C, H, W)``, float32.

    Raises:
        ValueError: a sample has no labels of the task, or a map has another size.
    """
    labels = []
    for sample in data_samples:
        if task.gt_field not in sample:
            raise ValueError(
                f"the task {task.name!r} has no labels in this batch: a data sample lacks "
                f"{task.gt_field}. Add {task.name!r} to tasks of the data set and load its labels "
                "in the pipeline, or take it out of tasks of decode_head"
            )
        label = sample.get(task.gt_field).data
        if label.shape[-2:] != tuple(size):
            raise ValueError(
                f"{task.gt_field}, the labels of the task {task.name!r}, must have the size of the "
                f"images of the batch, {size[0]}x{size[1]}, got {label.shape[-2]}x"
                f"{label.shape[-1]}; transform labels together with the image, and pad both (as "
                "data_preprocessor=dict(type='mmlocal.MultiTaskDataPreProcessor') does)"
            )
        labels.append(label)
    stacked = torch.stack(labels)
    return stacked.float() if task.continuous else stacked.squeeze(1).long()

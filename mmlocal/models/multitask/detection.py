"""ITSA's head with the detection of objects as one more task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from mmlocal.layers.inter_task_queries import Pyramid
from mmlocal.models.multitask.head import Feats
from mmlocal.models.multitask.outputs import stack_labels
from mmlocal.models.multitask.query_heads import ITSAHead
from mmlocal.registry import MODELS


@MODELS.register_module()
class ITSADetectionHead(ITSAHead):
    """Dense tasks by ITSA, and objects by queries that read the pyramids of all dense tasks.

    The pixels of the dense tasks do not read the queries, so the outputs of dense tasks are those
    of :class:`ITSAHead`. The losses of the detection train the pyramids too.

    Args:
        in_channels: see :class:`ITSAHead`, as for ``tasks`` and ``**kwargs``.
        tasks: options of each dense task.
        detection: config of the head of the detection, such as
            ``dict(type='mmlocal.InterTaskDETRHead', num_classes=5)``. This class sets its
            ``embed_dims``, ``num_maps`` and ``num_layers``.
        **kwargs: other arguments of :class:`ITSAHead`.

    Raises:
        ValueError: see :class:`ITSAHead` and the head of the detection.

    Note:
        The paper names tasks that are not dense as its limit, so this head has no source.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        tasks: Mapping[str, Mapping[str, Any]],
        detection: dict,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, tasks, **kwargs)
        step = self.interaction.steps[0]
        self.detection = MMSEG_MODELS.build(
            detection
            | dict(
                embed_dims=step.embed_dims,
                num_maps=step.attention.num_maps,
                num_layers=self.interaction.num_steps,
            )
        )

    def forward_with_pyramids(self, feats: Feats) -> tuple[dict[str, Tensor], list[Pyramid]]:
        """Compute the outputs of the dense tasks, and the pyramids of each step.

        Args:
            feats: output of the backbone, as in :meth:`forward`.
        """
        mixed = self.mix(self.encode(feats))
        tokens, pyramids = self.interaction.refine(mixed)
        return self.outputs(self.query(mixed, tokens)), pyramids

    def loss(
        self,
        feats: Feats,
        data_samples: Sequence[SegDataSample],
        train_cfg: dict | None = None,
        *,
        size: Sequence[int],
    ) -> dict[str, Tensor]:
        """Compute the losses of the dense tasks and of the detection.

        Args:
            feats: output of the backbone, as in :meth:`forward`.
            data_samples: a sample for each image, with the labels of each task, and with
                ``gt_instances``.
            train_cfg: unused.
            size: height and width of the images of the batch.

        Returns:
            ``loss_<task>`` by task, with its weight, and the losses of the detection.

        Raises:
            ValueError: labels are missing, or have another size than the images.
        """
        labels = {task.name: stack_labels(task, data_samples, size) for task in self.tasks}
        logits, pyramids = self.forward_with_pyramids(feats)
        losses = self.losses_of(logits, labels)
        return losses | self.detection.loss_of_pyramids(pyramids, data_samples, size)

    def predict(self, feats: Feats, size: Sequence[int]) -> dict[str, Tensor | list[InstanceData]]:
        """Compute the outputs of all tasks in the size of the images.

        Args:
            feats: output of the backbone, as in :meth:`forward`.
            size: height and width of the images of the batch.

        Returns:
            Logits ``(B, C_task, *size)`` by dense task, and the objects of each image under
            ``detection``: ``bboxes``, ``scores`` and ``labels``.
        """
        logits, pyramids = self.forward_with_pyramids(feats)
        objects = self.detection.boxes_of_pyramids(pyramids, size)
        return {name: self.resize(x, size) for name, x in logits.items()} | {"detection": objects}


def restore_boxes(
    objects: InstanceData, meta: Mapping[str, Any], size: Sequence[int]
) -> InstanceData:
    """Bring the boxes of an image back to the image before its pipeline.

    Args:
        objects: ``bboxes`` ``(N, 4)``, x and y of two corners in pixels of the network's input.
        meta: meta information of the data sample, see :meth:`MultiTaskSegmentor.predict`.
        size: height and width of the network's input.

    Returns:
        The objects, with boxes in pixels of an image of ``ori_shape``.
    """
    boxes = objects.bboxes.clone()
    height, width = size
    for key in ("img_padding_size", "padding_size"):
        left, right, top, bottom = meta.get(key, (0, 0, 0, 0))
        boxes -= boxes.new_tensor((left, top, left, top))
        height, width = height - top - bottom, width - left - right
    if meta.get("flip"):
        if meta.get("flip_direction", "horizontal") == "horizontal":
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        else:
            boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    rows, columns = meta.get("ori_shape", (height, width))[:2]
    boxes *= boxes.new_tensor((columns / width, rows / height) * 2)
    limit = boxes.new_tensor((columns, rows) * 2)
    return InstanceData(
        bboxes=torch.minimum(boxes.clamp(min=0), limit),
        scores=objects.scores,
        labels=objects.labels,
    )

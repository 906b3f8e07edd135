"""Detection of objects as one more task of a multi-task network with deformable attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import DeformableDETRHead
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from mmlocal.layers import InterTaskQueries
from mmlocal.layers.checks import check_int
from mmlocal.layers.inter_task_queries import Pyramid
from mmlocal.registry import MODELS


@MODELS.register_module()
class InterTaskDETRHead(DeformableDETRHead):
    """Detect objects by queries that read the pyramids of all dense tasks.

    :class:`~mmlocal.layers.InterTaskQueries` refine the queries. mmdet's ``DeformableDETRHead``
    makes boxes of them, assigns them to objects and computes the losses. ``ITSADetectionHead``
    builds this head from its argument ``detection``.

    Args:
        num_classes: number of classes of objects.
        embed_dims: channels of the maps; ``ITSADetectionHead`` sets it.
        num_maps: number of maps; ``ITSADetectionHead`` sets it.
        num_layers: number of steps of the inter-task block; ``ITSADetectionHead`` sets it.
        queries: other arguments of :class:`~mmlocal.layers.InterTaskQueries`, such as
            ``num_queries``.
        **head: other arguments of ``DeformableDETRHead``. The defaults of the losses
            and of the matching are Deformable DETR's.

    Raises:
        ValueError: ``num_classes`` is below 1; or see :class:`~mmlocal.layers.InterTaskQueries`.
        TypeError: ``num_classes`` is not an integer.

    Note:
        The paper of inter-task attention is limited to dense tasks, so this head has no source.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        num_maps: int,
        num_layers: int,
        queries: dict | None = None,
        **head: Any,
    ) -> None:
        check_int(num_classes=num_classes)
        focal = dict(type="mmdet.FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25)
        costs = [
            dict(type="mmdet.FocalLossCost", weight=2.0),
            dict(type="mmdet.BBoxL1Cost", weight=5.0, box_format="xywh"),
            dict(type="mmdet.IoUCost", iou_mode="giou", weight=2.0),
        ]
        queries = queries or {}
        # mmdet cannot take the best 100 of fewer pairs of a query and a class.
        pairs = num_classes * queries.get("num_queries", 100)
        defaults = dict(
            loss_cls=dict(**focal, loss_weight=2.0),
            loss_bbox=dict(type="mmdet.L1Loss", loss_weight=5.0),
            loss_iou=dict(type="mmdet.GIoULoss", loss_weight=2.0),
            train_cfg=dict(assigner=dict(type="mmdet.HungarianAssigner", match_costs=costs)),
            test_cfg=dict(max_per_img=min(100, pairs)),
            sync_cls_avg_factor=True,
        )
        super().__init__(
            num_classes=num_classes,
            embed_dims=embed_dims,
            num_pred_layer=num_layers,
            **(defaults | head),
        )
        self.queries = InterTaskQueries(embed_dims, num_maps, num_layers, **queries)

    def loss_of_pyramids(
        self,
        pyramids: Sequence[Pyramid],
        data_samples: Sequence[BaseDataElement],
        size: Sequence[int],
    ) -> dict[str, Tensor]:
        """Compute the losses of all layers.

        Args:
            pyramids: maps of all tasks before each step of the inter-task block.
            data_samples: a sample for each image. ``gt_instances`` has ``bboxes`` ``(N, 4)``, which
                are x and y of two corners in pixels, and ``labels`` ``(N,)`` int64.
            size: height and width of the images of the batch.

        Returns:
            Losses of mmdet's head by name, each with the prefix ``loss_detection_``.

        Raises:
            ValueError: a sample has no ``gt_instances``, or a label is no class.
        """
        for sample in data_samples:
            if "gt_instances" not in sample:
                raise ValueError(
                    "the detection task needs gt_instances, but the data sample of "
                    f"{sample.get('img_path', 'an image')} has none; set ann_file of the "
                    "data set, and load the boxes with LoadAnnotations(with_bbox=True)"
                )
            self._check_labels(sample)
        losses = super().loss_by_feat(
            *self._outputs(pyramids),
            None,
            None,
            [sample.gt_instances for sample in data_samples],
            # Boxes are fractions of the whole input, padding included.
            [dict(sample.metainfo, img_shape=tuple(size)) for sample in data_samples],
        )
        return {f"loss_detection_{name.replace('loss_', '')}": x for name, x in losses.items()}

    def _check_labels(self, sample: BaseDataElement) -> None:
        labels = sample.gt_instances.labels
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.numel():  # mmdet takes the first label beyond the classes for the background
            raise ValueError(
                f"labels of gt_instances must be from 0 to {self.num_classes - 1}, got "
                f"{wrong[0].item()} for {sample.get('img_path', 'an image')}; check "
                "decode_head.detection.num_classes"
            )

    def boxes_of_pyramids(
        self, pyramids: Sequence[Pyramid], size: Sequence[int]
    ) -> list[InstanceData]:
        """Detect objects.

        Args:
            pyramids: maps of all tasks before each step of the inter-task block.
            size: height and width of the images of the batch.

        Returns:
            For each image, ``bboxes`` ``(N, 4)`` in pixels of the network's input, ``scores`` and
            ``labels``, best first.
        """
        scores, boxes = self._outputs(pyramids)
        metas = [dict(img_shape=tuple(size)) for _ in range(scores.shape[1])]
        return self.predict_by_feat(scores, boxes, batch_img_metas=metas, rescale=False)

    def _outputs(self, pyramids: Sequence[Pyramid]) -> tuple[Tensor, Tensor]:
        """Logits and boxes of all layers, ``(num_layers, B, Q, ...)``, at least float32."""
        states, references = self.queries(pyramids)
        scores, boxes = self(states, [references] * len(states))
        wide = torch.promote_types(boxes.dtype, torch.float32)  # for pixels of large images
        return scores.to(wide), boxes.to(wide)

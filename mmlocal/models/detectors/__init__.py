"""Detectors. They need mmdet."""

from mmlocal.models.detectors.detr_qna import ConditionalDETRQnA, DETRQnA
from mmlocal.models.detectors.inter_task_detr import InterTaskDETRHead

__all__ = ["ConditionalDETRQnA", "DETRQnA", "InterTaskDETRHead"]

"""Detectors. They need mmdet."""

from mmlocal.models.detectors.detr_qna import ConditionalDETRQnA, DETRQnA

__all__ = ["ConditionalDETRQnA", "DETRQnA"]

"""Necks. They need MMEngine and no other OpenMMLab library."""

from mmlocal.models.necks.qna_pooling import QnAPooling

__all__ = ["QnAPooling"]

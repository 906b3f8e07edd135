"""Necks: need MMEngine and no task library."""

from mmlocal.models.necks.qna_pooling import QnAPooling

__all__ = ["QnAPooling"]

"""Attention ops: functions of tensors, one folder per op."""

from mmlocal.ops.elsa import elsa_attention
from mmlocal.ops.qna import qna_attention

__all__ = ["elsa_attention", "qna_attention"]

"""Backbones: need MMEngine and no task library."""

from mmlocal.models.backbones.elsa_swin import ELSASwin
from mmlocal.models.backbones.ghost_deit import GhostDeiT
from mmlocal.models.backbones.qna_vit import QnAViT

__all__ = ["ELSASwin", "GhostDeiT", "QnAViT"]

"""Backbones: need MMEngine and no task library."""

from mmlocal.models.backbones.elsa_swin import ELSASwin
from mmlocal.models.backbones.ghost_deit import GhostDeiT

__all__ = ["ELSASwin", "GhostDeiT"]

"""Backbones: need MMEngine and no task library."""

from mmlocal.models.backbones.elsa_swin import ELSASwin

__all__ = ["ELSASwin"]

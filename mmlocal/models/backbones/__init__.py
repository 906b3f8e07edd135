"""Backbones. They need MMEngine and no other OpenMMLab library. Each file registers one."""

from importlib import import_module
from pkgutil import iter_modules

from mmlocal.models.backbones.base import LocalBackbone
from mmlocal.models.backbones.dwnet import DWNet
from mmlocal.models.backbones.elsa_swin import ELSASwin
from mmlocal.models.backbones.elsa_volo import ELSAVOLO
from mmlocal.models.backbones.ghost_deit import GhostDeiT
from mmlocal.models.backbones.local_swin import LocalSwin
from mmlocal.models.backbones.qna_vit import QnAViT
from mmlocal.models.backbones.volo import VOLO

__all__ = [
    "ELSAVOLO",
    "VOLO",
    "DWNet",
    "ELSASwin",
    "GhostDeiT",
    "LocalBackbone",
    "LocalSwin",
    "QnAViT",
]

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

"""Checkpoints from elsewhere: read without executing code, renamed to our names, checked."""

from mmlocal.checkpoints.convert import Conversion, convert_checkpoint, convert_file
from mmlocal.checkpoints.elsa import convert_elsa, elsa_backbone_cfg
from mmlocal.checkpoints.files import load_file, save_file
from mmlocal.checkpoints.flax_files import load_flax
from mmlocal.checkpoints.matching import MatchReport, match_state_dict
from mmlocal.checkpoints.qna import convert_qna_vit, qna_backbone_cfg

__all__ = [
    "Conversion",
    "MatchReport",
    "convert_checkpoint",
    "convert_elsa",
    "convert_file",
    "convert_qna_vit",
    "elsa_backbone_cfg",
    "load_file",
    "load_flax",
    "match_state_dict",
    "qna_backbone_cfg",
    "save_file",
]

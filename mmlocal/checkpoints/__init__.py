"""Checkpoints from elsewhere: read without executing code, renamed to our names, checked."""

from mmlocal.checkpoints.convert import Conversion, convert_checkpoint, convert_file
from mmlocal.checkpoints.elsa import convert_elsa, elsa_backbone_cfg
from mmlocal.checkpoints.files import load_file, save_file
from mmlocal.checkpoints.matching import MatchReport, match_state_dict

__all__ = [
    "Conversion",
    "MatchReport",
    "convert_checkpoint",
    "convert_elsa",
    "convert_file",
    "elsa_backbone_cfg",
    "load_file",
    "match_state_dict",
    "save_file",
]

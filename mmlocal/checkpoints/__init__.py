"""Checkpoints from elsewhere: read without executing code, renamed to our names, checked."""

from mmlocal.checkpoints.elsa import convert_elsa
from mmlocal.checkpoints.files import load_file
from mmlocal.checkpoints.matching import MatchReport, match_state_dict

__all__ = ["MatchReport", "convert_elsa", "load_file", "match_state_dict"]

"""Official checkpoints: read without executing code, renamed to our names, and checked.

Each official code base has one file here. The file registers the code base; see
:mod:`mmlocal.checkpoints.system`.
"""

from importlib import import_module
from pkgutil import iter_modules

from mmlocal.checkpoints.convert import Conversion, convert_checkpoint, convert_file
from mmlocal.checkpoints.files import find_file, load_file, save_file
from mmlocal.checkpoints.flax_files import load_flax
from mmlocal.checkpoints.matching import MatchReport, match_state_dict
from mmlocal.checkpoints.system import SYSTEMS, System, register_system

__all__ = [
    "SYSTEMS",
    "Conversion",
    "MatchReport",
    "System",
    "convert_checkpoint",
    "convert_file",
    "find_file",
    "load_file",
    "load_flax",
    "match_state_dict",
    "register_system",
    "save_file",
]

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

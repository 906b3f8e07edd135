"""Local attention for OpenMMLab: ops, layers, and backbones for configs.

Importing this package imports neither torch nor any OpenMMLab library, so it cannot fail. If it
failed, MMEngine would hide the ``ImportError`` and report a missing registry entry instead.
"""

from mmlocal.paths import config_path, list_configs
from mmlocal.version import __version__

__all__ = ["__version__", "config_path", "list_configs"]

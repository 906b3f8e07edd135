"""Local attention for OpenMMLab: ops, layers and backbones to name in a config.

Importing this package imports neither torch nor any OpenMMLab library, so that it cannot fail:
``mmengine`` swallows an ``ImportError`` here and reports a missing registry entry instead.
"""

from mmlocal.paths import config_path, list_configs
from mmlocal.version import __version__

__all__ = ["__version__", "config_path", "list_configs"]

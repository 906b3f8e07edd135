"""Local attention for OpenMMLab: ops, layers, and backbones for configs.

Importing this package imports neither torch nor any OpenMMLab library, so it cannot fail. If it
failed, MMEngine would hide the ``ImportError`` and report a missing registry entry instead.
"""

from mmlocal.extensions import add_loader, add_models
from mmlocal.imports import after_import
from mmlocal.paths import config_path, list_configs, list_weights, weights_path
from mmlocal.version import __version__

__all__ = ["__version__", "config_path", "list_configs", "list_weights", "weights_path"]

after_import("mmengine.runner.checkpoint", add_loader)
after_import("mmpretrain.apis.model", add_models)

"""Models by kind. Importing this package registers each one whose library is installed."""

import importlib
import warnings

from mmlocal.models import autoencoders, backbones, necks

__all__ = ["autoencoders", "backbones", "necks"]

try:
    importlib.import_module("mmdet")
    importlib.import_module("mmdet.models")
except Exception as error:
    # The backbones also work where mmdet is broken, for example without mmcv's compiled ops.
    if not (isinstance(error, ModuleNotFoundError) and error.name == "mmdet"):
        warnings.warn(
            f"mmlocal's detectors are not registered, because mmdet does not import: {error!r}",
            stacklevel=2,
        )
else:
    from mmlocal.models import detectors

    __all__ += ["detectors"]

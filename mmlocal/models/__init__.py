"""Models by kind. Importing this package registers each one whose library is installed."""

import importlib
import warnings

from mmlocal.models import autoencoders, backbones, necks

__all__ = ["autoencoders", "backbones", "necks"]

# Folders of models that need a library.
_NEEDS = {
    "classifiers": "mmpretrain",
    "detectors": "mmdet",
    "heads": "mmpretrain",
    "multitask": "mmseg",
}

for _folder, _library in _NEEDS.items():
    try:
        importlib.import_module(_library)
        importlib.import_module(f"{_library}.models")
    except Exception as error:
        # The backbones also work where a library is broken, as without mmcv's compiled ops.
        if not (isinstance(error, ModuleNotFoundError) and error.name == _library):
            warnings.warn(
                f"mmlocal's {_folder} are not registered, because {_library} does not import: "
                f"{error!r}",
                stacklevel=2,
            )
    else:
        importlib.import_module(f"mmlocal.models.{_folder}")
        __all__ += [_folder]

"""Steps of data pipelines. They may need ``mmcv.transforms``, and no other OpenMMLab library.

Each file registers its steps. Nothing is registered if mmcv is missing.
"""

from importlib import import_module
from pkgutil import iter_modules

try:
    import_module("mmcv.transforms")
except ModuleNotFoundError as error:
    if error.name != "mmcv":
        raise
else:
    for _module in iter_modules(__path__, f"{__name__}."):
        import_module(_module.name)

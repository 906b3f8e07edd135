"""Data sets. They need MMEngine and no other OpenMMLab library. Each file registers one.

The folders in here are not imported, so that a config does not load the generator of the shapes.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    if not _module.ispkg:
        import_module(_module.name)

"""Multi-task dense prediction: segmentors, heads and losses. They need mmseg.

Each file registers its own.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

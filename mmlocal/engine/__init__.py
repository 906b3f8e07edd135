"""Hooks, optimizer wrappers and their constructors, which MMEngine finds in its registries."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

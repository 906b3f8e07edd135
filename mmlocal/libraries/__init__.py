"""One object for each library: the only place that knows how libraries differ.

``default_scope`` of a config names its library, unless a library overrides :meth:`Library.owns`. A
scope that is not registered here works as plain MMEngine. Each library in this folder has a file,
which registers it. Another package can add its library with :func:`register_library`. A config then
imports that package by ``custom_imports``, so that the commands find it. Importing this package
imports no library.
"""

from importlib import import_module
from pkgutil import iter_modules

from mmlocal.libraries.base import Library
from mmlocal.libraries.demo import Demo
from mmlocal.libraries.mmdet import MMDet
from mmlocal.libraries.mmseg import MMSeg

# isort: split
# The order of the imports is the order in `mmlocal info`: mmpretrain is last.
from mmlocal.libraries.mmpretrain import MMPreTrain
from mmlocal.libraries.registry import LIBRARIES, library_of, register_library

__all__ = [
    "LIBRARIES",
    "Demo",
    "Library",
    "MMDet",
    "MMPreTrain",
    "MMSeg",
    "library_of",
    "register_library",
]

# A new library registers itself when its file is imported. No list above has to name the file.
for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

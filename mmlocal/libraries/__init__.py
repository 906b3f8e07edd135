"""One object for each library: the only place that knows how libraries differ.

``default_scope`` of a config names its library. A scope that is not registered here works as plain
MMEngine. Another package can add its library with :func:`register_library`. A config then imports
that package by ``custom_imports``, so that the commands find it. Importing this package imports no
library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mmlocal.libraries.base import Demo, Library
from mmlocal.libraries.mmdet import MMDet
from mmlocal.libraries.mmpretrain import MMPreTrain
from mmlocal.libraries.mmseg import MMSeg

if TYPE_CHECKING:
    from mmengine.config import Config

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

LIBRARIES: dict[str, Library] = {}
"""The registered libraries by name."""

_Class = TypeVar("_Class", bound=type[Library])


def register_library(cls: _Class) -> _Class:
    """Make a library known to all commands. This function is also a class decorator.

    Args:
        cls: subclass of :class:`Library` with a ``name`` of its own.

    Returns:
        ``cls``.

    Raises:
        ValueError: another class has this name, or ``cls`` does not set a name.
    """
    known = LIBRARIES.get(cls.name)
    if cls.name == Library.name or (known is not None and type(known) is not cls):
        raise ValueError(f"cls.name must be the name of a new library, got {cls.name!r}")
    LIBRARIES[cls.name] = cls()
    return cls


def library_of(cfg: Config) -> Library:
    """The library that ``default_scope`` of a config names; plain MMEngine if it is not registered.

    Args:
        cfg: whole config.
    """
    scope = cfg.get("default_scope") or Library.name
    return LIBRARIES.get(scope) or Library(scope)


for _library in (MMDet, MMSeg, MMPreTrain):
    register_library(_library)

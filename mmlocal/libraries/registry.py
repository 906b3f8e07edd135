"""The registered libraries, and the library of a config."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mmlocal.libraries.base import Library

if TYPE_CHECKING:
    from mmengine.config import Config

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
    """The newest library that owns a config; plain MMEngine if no registered library does.

    Args:
        cfg: whole config.
    """
    # Newest first, so that a library built on another one can take a part of its configs.
    for library in reversed(LIBRARIES.values()):
        if library.owns(cfg):
            return library
    return Library(cfg.get("default_scope"))

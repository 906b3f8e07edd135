"""Run a function as soon as another module is imported.

This module imports the standard library only.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], object]


def after_import(name: str, action: Action) -> None:
    """Call ``action`` with a module: now if the module is imported, else right after its import.

    An action that fails gives a warning, and the import succeeds.

    Args:
        name: full name of the module.
        action: function of the module.
    """
    if name in sys.modules:
        _act(action, sys.modules[name])
        return
    _WATCH.actions.setdefault(name, []).append(action)
    if _WATCH not in sys.meta_path:
        sys.meta_path.insert(0, _WATCH)


class _Watch(MetaPathFinder):
    """Finder that runs actions after the import of some modules. Other finders find the modules."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}
        self._asking: set[tuple[int, str]] = set()  # thread and module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # Another finder may ask all finders, too, such as this class of a second copy of mmlocal.
        question = (threading.get_ident(), fullname)
        if fullname not in self.actions or question in self._asking:
            return None
        self._asking.add(question)
        try:
            spec = self._ask_others(fullname, path, target)
        finally:
            self._asking.discard(question)
        if spec is not None and spec.loader is not None:
            spec.loader = _ActingLoader(self, spec.loader)
        return spec

    def _ask_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):  # Python skips these, too
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None

    def act(self, module: ModuleType) -> None:
        """Run the actions that wait for a module, once."""
        for action in self.actions.pop(module.__name__, []):
            _act(action, module)
        if not self.actions and self in sys.meta_path:
            sys.meta_path.remove(self)


class _ActingLoader(Loader):
    """Loader that loads a module by another loader, and then runs the actions for the module."""

    def __init__(self, watch: _Watch, loader: Loader) -> None:
        self.watch, self.loader = watch, loader

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # a copy has no attributes at first
            raise AttributeError(name)
        return getattr(self.loader, name)  # such as get_source

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module belongs to its own loader, which can also show its source.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.watch.act(module)


def _act(action: Action, module: ModuleType) -> None:
    try:
        action(module)
    except Exception as error:  # the import of another package must not fail because of mmlocal
        name = getattr(action, "__name__", action)
        warnings.warn(f"mmlocal: {name}: {error}", stacklevel=2)


_WATCH = _Watch()

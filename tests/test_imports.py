"""Functions that wait for the import of another module."""

import copy
import importlib
import importlib.util
import inspect
import sys

import pytest

from mmlocal import imports
from mmlocal.imports import after_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module that is not imported, and whose source is there."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(imports, "_WATCH", imports._Watch())
    (tmp_path / "mmlocal_waited_for.py").write_text("value = 1\n")
    yield "mmlocal_waited_for"
    sys.modules.pop("mmlocal_waited_for", None)


def test_an_action_waits(module):
    calls = []
    before = list(sys.meta_path)
    after_import(module, lambda found: calls.append(("first", found.value)))
    after_import(module, lambda found: calls.append(("second", found.value)))
    assert importlib.util.find_spec(module).loader.get_filename().endswith(f"{module}.py")
    assert calls == []
    found = importlib.import_module(module)
    assert calls == [("first", 1), ("second", 1)]
    assert sys.meta_path == before
    # Nothing of the watch is left in the module.
    assert inspect.getsource(found) == "value = 1\n"
    assert type(found.__loader__) is type(found.__spec__.loader)
    assert type(found.__loader__).__name__ == "SourceFileLoader"
    importlib.reload(found)
    assert len(calls) == 2


def test_an_imported_module(module):
    importlib.import_module(module)
    calls = []
    after_import(module, calls.append)
    assert calls == [sys.modules[module]]


def test_a_missing_module(module):
    after_import(f"{module}_not", pytest.fail)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{module}_not")


def test_an_action_that_fails(module):
    def add_things(found: object) -> None:
        raise ValueError("no things")

    after_import(module, add_things)
    with pytest.warns(UserWarning, match="mmlocal: add_things: no things"):
        assert importlib.import_module(module).value == 1


def test_a_module_that_fails_first(module, tmp_path):
    """The action waits for the import that succeeds."""
    source = tmp_path / f"{module}.py"
    source.write_text("raise RuntimeError('not yet')\n")
    calls = []
    after_import(module, calls.append)
    with pytest.raises(RuntimeError, match="not yet"):
        importlib.import_module(module)
    assert calls == []
    source.write_text("value = 22\n")
    importlib.invalidate_caches()
    assert importlib.import_module(module).value == 22
    assert len(calls) == 1


def test_two_watches(module, monkeypatch):
    """Two copies of mmlocal ask each other for the module, and both find it."""
    calls = []
    for _ in range(2):
        monkeypatch.setattr(imports, "_WATCH", imports._Watch())
        after_import(module, calls.append)
    found = importlib.import_module(module)
    assert calls == [found, found]
    assert type(found.__spec__.loader).__name__ == "SourceFileLoader"


def test_a_spec_can_be_copied(module):
    after_import(module, lambda found: None)
    spec = importlib.util.find_spec(module)
    assert copy.deepcopy(spec).loader.get_filename() == spec.origin

"""The table of what works, and the verdicts on libraries that are missing or broken."""

import importlib
import platform
import sys
from pathlib import Path

import pytest

from mmlocal import compatibility, info
from mmlocal.compatibility import version_verdict
from mmlocal.libraries import LIBRARIES
from mmlocal.ops import OLDEST_TORCH
from mmlocal.ops.backends import MIN_TRITON

ROOT = Path(__file__).resolve().parents[1]
COMPILE = "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps "


@pytest.fixture(autouse=True)
def _no_memory_of_distributions():
    compatibility.distributions.cache_clear()
    yield
    compatibility.distributions.cache_clear()


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder that comes first in the search for modules and distributions."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def distribution(site: Path, name: str, version: str, module: str) -> None:
    """What an installed distribution leaves beside its modules."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "top_level.txt").write_text(module)


def replace(site: Path, module: str, text: str, monkeypatch) -> None:
    """Put a module before the installed one of its name."""
    for name in [*sys.modules]:
        if name.partition(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    (site / f"{module}.py").write_text(text)
    importlib.invalidate_caches()


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_is_missing_in_the_tested_environment(library):
    assert LIBRARIES[library].missing() == []
    assert LIBRARIES[library].why_not() is None


def test_mmcv_without_compiled_ops(monkeypatch):
    """As pip builds it in isolation, where there is no torch."""
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)
    for library in ("mmdet", "mmseg"):
        (found,) = LIBRARIES[library].missing()
        assert found.what.startswith("mmcv's compiled ops do not load (ModuleNotFoundError: ")
        assert found.mend == COMPILE + "onedl-mmcv"
        assert LIBRARIES[library].why_not() == (
            f"{library} cannot run here: {found.what}. Mend it with\n    {COMPILE}onedl-mmcv"
        )
    assert LIBRARIES["mmpretrain"].missing() == []


def test_torch_with_which_mmcv_does_not_compile(site, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)
    distribution(site, "torch", "2.14.0", "torch")
    assert [found.mend for found in LIBRARIES["mmdet"].missing()] == [
        "pip install torch==2.11.0 torchvision==0.26.0",
        COMPILE + "onedl-mmcv",
    ]


@pytest.mark.parametrize(
    ("torch", "fitting"),
    [
        ("2.11.0", "torchvision==0.26.0"),
        ("2.6.0", "torchvision==0.21.0"),
        ("2.9.1+cpu", "torchvision==0.24.1+cpu --index-url (the index of your torch)"),
    ],
)
def test_missing_torchvision(torch, fitting, site, monkeypatch):
    distribution(site, "torch", torch, "torch")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (found,) = LIBRARIES["mmpretrain"].missing()
    assert found == ("torchvision is not installed", f"pip install --no-deps {fitting}")
    assert LIBRARIES["mmdet"].missing() == LIBRARIES["mmseg"].missing() == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_torchvision_of_another_torch(library, site, monkeypatch):
    replace(site, "torchvision", "raise RuntimeError('no operator nms\\nat all')", monkeypatch)
    (found,) = LIBRARIES[library].missing()
    assert found.what == "torchvision does not import (RuntimeError: no operator nms)"
    assert found.mend == "pip install --no-deps torchvision==0.26.0"


@pytest.mark.parametrize(
    ("name", "version", "what", "mend"),
    [
        ("torch", "2.4.1", "torch 2.4.1 is too old", "torch==2.11.0 torchvision==0.26.0"),
        ("numpy", "1.22.0", "numpy 1.22.0 is too old", "numpy==2.2.6"),
        ("onedl-mmengine", "1.0.0", "mmengine 1.0.0 is too new", "onedl-mmengine==0.10.12"),
        (
            *("onedl-mmsegmentation", "0.30.0", "mmseg 0.30.0 is too old"),
            "onedl-mmsegmentation==1.4.2",
        ),
    ],
)
def test_versions_that_cannot_work(name, version, what, mend, site):
    distribution(site, name, version, what.partition(" ")[0])
    assert LIBRARIES["mmseg"].missing() == [(what, f"pip install {mend}")]


def test_python_that_is_too_old(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.20")
    (found,) = LIBRARIES["mmpretrain"].missing()
    assert found == ("Python 3.9.20 is too old", "an environment of Python 3.10, 3.11 or 3.12")


def test_library_that_is_not_installed(monkeypatch):
    for name in ("mmengine", "mmcv", "mmseg"):
        monkeypatch.setitem(sys.modules, name, None)
    text = LIBRARIES["mmseg"].why_not().splitlines()
    assert text[0] == (
        "mmseg cannot run here: mmengine is not installed; mmcv is not installed; "
        "mmseg is not installed. Mend it with"
    )
    assert text[1:] == [
        "    pip install onedl-mmengine==0.10.12",
        f"    {COMPILE}onedl-mmcv",
        "    pip install onedl-mmsegmentation==1.4.2",
    ]


@pytest.mark.parametrize(
    ("body", "what", "mend"),
    [
        (
            "import no_such_module.inside",
            "mmdet does not import (ModuleNotFoundError: No module named 'no_such_module')",
            "pip install no_such_module",
        ),
        (
            "raise ImportError('libGL.so.1: cannot open shared object file')",
            "mmdet does not import (ImportError: libGL.so.1: cannot open shared object file)",
            "pip install --force-reinstall --no-deps opencv-python-headless",
        ),
        (
            "assert False, 'MMCV==3.0.0 is used but incompatible.'",
            "mmdet does not import (AssertionError: MMCV==3.0.0 is used but incompatible.)",
            "pip install --force-reinstall --no-deps onedl-mmdetection",
        ),
        (
            "raise RuntimeError",
            "mmdet does not import (RuntimeError)",
            "pip install --force-reinstall --no-deps onedl-mmdetection",
        ),
    ],
)
def test_library_that_breaks_at_import(body, what, mend, site, monkeypatch):
    replace(site, "mmdet", body, monkeypatch)
    assert LIBRARIES["mmdet"].missing() == [(what, mend)]


def test_who_uses_the_original_distributions_is_not_sent_to_the_forks(site, monkeypatch):
    distribution(site, "mmengine", "0.10.7", "mmengine")
    distribution(site, "mmcv-lite", "2.1.0", "mmcv")
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setitem(sys.modules, "mmseg", None)
    monkeypatch.setitem(sys.modules, "mmcv", None)
    commands = [found.mend for found in LIBRARIES["mmseg"].missing()]
    assert commands[-2:] == [COMPILE + "mmcv", "pip install mmsegmentation"]


def test_remains_of_an_interrupted_pip_are_passed_over(site):
    (site / "~mdet-3.5.1.dist-info").mkdir()
    (site / "~mdet-3.5.1.dist-info" / "top_level.txt").write_text("mmdet")
    assert compatibility.distributions()["mmdet"] == ["onedl-mmdetection"]
    assert info.library_line("mmdet").endswith("(onedl-mmdetection): tested")


def test_package_that_the_table_does_not_know():
    found = compatibility.missing(["torch", "numpy", "no_such_package"])
    assert found == [("no_such_package is not installed", "pip install no_such_package")]
    assert compatibility.missing(["torch", "pytest"]) == []


def test_only_the_line_about_onedl_is_kept_quiet(site, capsys):
    text = "print('first')\nprint('Could not import OneDL. Skipping OneDL datasets.')\n"
    (site / "talking.py").write_text(text + "print('last')")
    (site / "failing.py").write_text(text + "raise OSError('no')")
    compatibility.import_quietly("talking")
    with pytest.raises(OSError, match="no"):
        compatibility.import_quietly("failing")
    assert capsys.readouterr().out == "first\nlast\nfirst\n"


@pytest.mark.parametrize(
    ("name", "version", "verdict"),
    [
        ("torch", "2.11.0", "tested"),
        ("torch", "2.11.0+cu130", "tested"),
        ("torch", "2.11.1", "expected"),
        ("torch", "2.6.0", "expected"),
        ("torch", "2.14.0a0+git123", "expected"),
        ("torch", "2.5.1", "no"),
        ("Python", "3.10.14", "tested"),
        ("Python", "3.13.0", "expected"),
        ("Python", "3.9.20", "no"),
        ("cv2", "4.12.0.88", "tested"),
        ("cv2", "4.120.0", "expected"),
        ("mmcv", "2.4.0", "no"),
        ("mmcv", "2.1.0", "expected"),
        ("triton", "3.2.0", "no"),
        ("triton", "unknown", "expected"),
        ("torchvision", "0.26.0+cpu", "tested"),
        ("torchvision", "0.26.1", "expected"),
        ("torchvision", "0.27.0", "no"),
    ],
)
def test_verdict_on_a_version(name, version, verdict):
    assert version_verdict(name, version) == verdict


@pytest.mark.parametrize(
    ("system", "machine", "verdict"),
    [
        ("Linux", "x86_64", "tested"),
        ("Linux", "aarch64", "expected"),
        ("Linux", "riscv64", "expected"),
        ("Darwin", "arm64", "expected"),
        ("Windows", "AMD64", "expected"),
    ],
)
def test_verdict_on_a_system(system, machine, verdict, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert compatibility.system_verdict() == verdict


def test_table_has_a_row_for_everything():
    rows = {row[""]: row for row in compatibility.table()}
    assert set(rows) == {"system", *compatibility.SUPPORT}
    assert rows["system"]["tested"] == "Linux x86_64"
    for system in ("aarch64", "macOS", "Windows"):
        assert system in rows["system"]["expected"]
    assert rows["torch"]["tested"] == "2.11.0"
    assert rows["torch"]["expected"] == "2.6 or newer"
    assert rows["torch"]["no"].startswith("older than 2.6; ")


@pytest.mark.parametrize("page", ["README.md", "docs/compatibility.md"])
def test_pages_show_the_table(page):
    table = info.markdown_table(compatibility.table())
    assert table in (ROOT / page).read_text(), "paste the output of mmlocal info --compatibility"


def test_minima_are_those_of_the_ops():
    assert compatibility.SUPPORT["torch"].least == "{}.{}".format(*OLDEST_TORCH)
    assert compatibility.SUPPORT["triton"].least == "{}.{}".format(*MIN_TRITON)

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from mmlocal import compatibility, info
from mmlocal.compatibility import SUPPORT
from mmlocal.libraries import LIBRARIES
from mmlocal.ops import OPS

ROOT = Path(__file__).resolve().parent.parent


def run(before):
    """The output of ``python -m mmlocal.info`` in a fresh interpreter."""
    code = f"import sys; {before}; from mmlocal.info import main; main([])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_report_names_versions_and_every_backend():
    text = subprocess.run(
        [sys.executable, "-m", "mmlocal.info"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert re.search(rf"^torch +{re.escape(torch.__version__)}", text, re.M)
    for name in SUPPORT:
        assert re.search(rf"^{name} +\d.*: tested$", text, re.M), name
    for library in LIBRARIES:
        assert f"\n{library} can train here\n" in text
    for row in compatibility.table():
        assert re.search(r" +".join(map(re.escape, row.values())).lstrip(), text)
    assert "OneDL" not in text  # what the forks print when their data sets are imported
    assert re.search(r"^mmcv\._ext +CPU", text, re.M)
    assert re.search(r"^mmlocal\._C +(\d+ thread|not there: )", text, re.M)
    assert re.search(r"^mmdet +\S+ \(onedl-mmdetection\)", text, re.M)
    for op in OPS.values():
        for backend in op.backends:
            assert f"{op.name}, backend {backend.name} " in text


@pytest.mark.parametrize("absent", ["triton", "mmcv", "mmdet", "mmengine", "torch"])
def test_what_is_missing_is_said_and_does_not_fail(absent):
    # None in sys.modules makes an import fail; find_spec then raises ValueError or finds nothing.
    hide = (
        "import importlib.util as u; real = u.find_spec; "
        f"sys.modules['{absent}'] = None; "
        f"u.find_spec = lambda n, p=None: None if n == '{absent}' else real(n, p)"
    )
    text = run(hide)
    assert re.search(rf"^{absent} +not installed$", text, re.M)
    needs = {"triton": (), "mmdet": ("mmdet",)}.get(absent, LIBRARIES)
    for library in LIBRARIES:
        if library in needs:
            assert f"\n{library} cannot run here: {absent} is not installed" in text
        else:
            assert f"\n{library} can train here\n" in text
    if absent == "torch":
        assert "ops do not import: " in text
    else:
        assert re.search("^elsa, backend reference .*: runs here$", text, re.M)
    if absent == "mmcv":
        assert re.search(r"^mmcv\._ext +not there: ", text, re.M)


@pytest.mark.parametrize(
    ("extension", "line"),
    [
        (types.SimpleNamespace(threads=torch.get_num_threads), r"\d+ threads?"),
        (types.SimpleNamespace(threads=lambda: 0), r"0 thread; torch has .* no OpenMP .*"),
        (None, "not there: no compiler"),
    ],
)
def test_extension(extension, line, monkeypatch):
    monkeypatch.setattr("mmlocal.ops.extension.extension", extension)
    monkeypatch.setattr("mmlocal.ops.extension.unavailable_reason", "no compiler")
    assert re.fullmatch(line, info.extension_line())


def test_a_library_that_breaks_at_import_is_reported(tmp_path, monkeypatch):
    (tmp_path / "brokenlib.py").write_text("assert False, 'wrong version of its friend'")
    monkeypatch.syspath_prepend(tmp_path)
    line = info.library_line("brokenlib")
    assert line == "does not import: AssertionError: wrong version of its friend"


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("1.2.0+cpu", "1.2.0+cpu: tested"),
        ("1.1.0", "1.1.0: expected to work, tested is 1.2.0"),
        ("0.9", "0.9: does not work, tested is 1.2.0"),
    ],
)
def test_versions_get_a_verdict(version, line, tmp_path, monkeypatch):
    (tmp_path / "somelib.py").write_text(f"__version__ = {version!r}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "somelib", raising=False)
    monkeypatch.setitem(SUPPORT, "somelib", compatibility.Support(("1.2.0",), "1.0"))
    assert info.library_line("somelib") == line


def test_compiled_ops_that_are_missing_come_with_their_mending(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)
    info.main([])
    text = capsys.readouterr().out
    options = "--no-build-isolation --no-cache-dir --force-reinstall --no-deps"
    for library in ("mmdet", "mmseg"):
        reason = f"{library} cannot run here: mmcv's compiled ops do not load"
        assert re.search(
            rf"^{reason} .*\. Mend it with\n    pip install {options} onedl-mmcv$", text, re.M
        )
    assert "\nmmpretrain can train here\n" in text


def test_tested_versions_are_the_pinned_ones():
    text = "\n".join(path.read_text() for path in (ROOT / "requirements").glob("*.txt"))
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.M))
    names = {"cv2": "opencv-python", "mmdet": "onedl-mmdetection", "mmseg": "onedl-mmsegmentation"}
    for name, support in SUPPORT.items():
        if name not in ("Python", "triton"):  # triton comes with torch
            pin = pins.get(names.get(name, name)) or pins[f"onedl-{name}"]
            assert support.verdict(pin) == compatibility.TESTED, name


def test_compatibility_is_markdown_of_the_same_table(capsys):
    info.main(["--compatibility"])
    text = capsys.readouterr().out
    assert text.strip() == info.markdown_table(compatibility.table())


def test_table_is_markdown_with_a_row_per_backend(capsys):
    info.main(["--table"])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| op | backend |")
    assert len(lines) == 2 + sum(len(op.backends) for op in OPS.values())
    error = OPS["elsa"].backends[0].atol[torch.float32]
    assert any(f"float32 {error:.2g}" in line for line in lines)


def test_a_backend_that_cannot_run_says_why(monkeypatch, capsys):
    from dataclasses import replace

    backend = replace(OPS["elsa"].backends[0], name="other", requires=lambda: "no such compiler")
    monkeypatch.setitem(OPS, "elsa", replace(OPS["elsa"], backends=(backend,)))
    info.main([])
    assert "elsa, backend other" in (text := capsys.readouterr().out)
    assert ": cannot run: no such compiler" in text

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from mmlocal import info
from mmlocal.ops.backends import list_ops

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, before="pass"):
    """The output of ``python -m mmlocal.info`` in a fresh interpreter."""
    code = f"import sys; {before}; from mmlocal.info import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_report_names_versions_and_every_backend():
    text = subprocess.run(
        [sys.executable, "-m", "mmlocal.info"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert re.search(rf"^torch +{re.escape(torch.__version__)}", text, re.M)
    for name in info.TESTED:
        assert re.search(rf"^{name} +\d", text, re.M), name
    assert re.search(r"^mmcv\._ext +CPU", text, re.M)
    assert re.search(r"^mmlocal\._C +(\d+ thread|not there: )", text, re.M)
    assert re.search(r"^mmdet +\S+ \(onedl-mmdetection\)", text, re.M)
    for op, backends in list_ops().items():
        for backend in backends:
            assert f"{op}, backend {backend.name} " in text


@pytest.mark.parametrize("absent", ["triton", "mmcv", "mmdet", "mmengine", "torch"])
def test_what_is_missing_is_said_and_does_not_fail(absent):
    # None in sys.modules makes an import fail; find_spec then raises ValueError or finds nothing.
    hide = (
        "import importlib.util as u; real = u.find_spec; "
        f"sys.modules['{absent}'] = None; "
        f"u.find_spec = lambda n, p=None: None if n == '{absent}' else real(n, p)"
    )
    text = run(before=hide)
    assert re.search(rf"^{absent} +not installed$", text, re.M)
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
        (types.SimpleNamespace(threads=lambda: 0), r"0 thread; torch has .* without OpenMP"),
        (types.SimpleNamespace(), "of an older version of mmlocal: build it again"),
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
    line = info.library_line("brokenlib", None)
    assert line == "does not import: AssertionError: wrong version of its friend"


def test_untested_versions_are_marked(tmp_path, monkeypatch):
    (tmp_path / "somelib.py").write_text("__version__ = '1.2.0+cpu'")
    monkeypatch.syspath_prepend(tmp_path)
    assert info.library_line("somelib", "1.2.0") == "1.2.0+cpu"
    assert "not tested, the tests run with 1.1.0" in info.library_line("somelib", "1.1.0")


def test_tested_versions_are_the_pinned_ones():
    text = "\n".join(path.read_text() for path in (ROOT / "requirements").glob("*.txt"))
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.M))
    names = {"cv2": "opencv-python", "mmdet": "onedl-mmdetection", "mmseg": "onedl-mmsegmentation"}
    for name, version in info.TESTED.items():
        if version is not None:
            pin = pins.get(names.get(name, name)) or pins[f"onedl-{name}"]
            assert pin == version or pin.startswith(version + "."), name


def test_table_is_markdown_with_a_row_per_backend():
    lines = run("--table").splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| op | backend |")
    assert len(lines) == 2 + sum(len(backends) for backends in list_ops().values())
    error = list_ops()["elsa"][0].atol[torch.float32]
    assert any(f"float32 {error:.2g}" in line for line in lines)


def test_a_backend_that_cannot_run_says_why(monkeypatch, capsys):
    from dataclasses import replace

    backend = replace(list_ops()["elsa"][0], name="other", requires=lambda: "no such compiler")
    monkeypatch.setattr("mmlocal.ops.backends.list_ops", lambda: {"elsa": (backend,)})
    info.main([])
    assert "elsa, backend other" in (text := capsys.readouterr().out)
    assert ": cannot run: no such compiler" in text

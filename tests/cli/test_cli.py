"""The command ``mmlocal``: its subcommands, their imports, and the scripts in tools/."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmlocal
from mmlocal import cli

ROOT = Path(__file__).parents[2]
# Script in tools/ -> the subcommand that it runs.
TOOLS = {
    "browse_dataset": "browse",
    "check_dataset": "check-dataset",
    "compare_autoencoders": "compare-autoencoders",
    "compare_operators": "compare-operators",
    "convert_checkpoint": "convert",
    "demo": "demo",
    "explore": "explore",
    "export_onnx": "export-onnx",
    "get_flops": "flops",
    "make_shapes": "make-shapes",
    "print_config": "print-config",
    "publish_model": "publish",
    "test": "test",
    "train": "train",
    "visualize_attention": "visualize-attention",
}


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mmlocal", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_lists_every_subcommand_in_one_line(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    listed = re.findall(r"^  ([a-z-]+) {2,}\S.*$", capsys.readouterr().out, re.M)
    assert [name for name in listed if name in cli.COMMANDS] == list(cli.COMMANDS)


def test_page_has_every_subcommand_and_the_tool_of_the_same_name():
    page = (ROOT / "docs" / "command_line.md").read_text()
    listed = re.findall(r"^\| `mmlocal ([a-z-]+)` \| (?:`(\S+)\.py`)?", page, re.M)
    assert [name for name, _ in listed] == list(cli.COMMANDS)
    assert {tool: name for name, tool in listed if tool} == {
        f"tools/{tool}": name
        for tool, name in TOOLS.items()
        if tool != "demo"  # make demo
    }


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_subcommand_has_a_parser_and_a_main(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/mmlocal"])
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: mmlocal {command} ")
    assert callable(cli.load(command).parse_args)


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_are_the_subcommands(tool, capsys, monkeypatch):
    path = ROOT / "tools" / f"{tool}.py"
    monkeypatch.setattr(sys, "argv", [str(path)])
    scope = {"__name__": "__main__", "__file__": str(path)}
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit, match="0"):
        exec(path.read_text(), scope)
    assert scope["tool"] is cli.load(TOOLS[tool])
    usage = " ".join(capsys.readouterr().out.split())  # long paths break the line
    assert usage.startswith(f"usage: python {path} ")


def test_no_tool_is_left_out():
    """Every tool has a subcommand, except benchmarks, audit and set-up, which need a clone."""
    scripts = {path.stem for path in (ROOT / "tools").glob("*.py")}
    benchmarks = {name for name in scripts if name.startswith(("benchmark_", "audit_"))}
    assert scripts - benchmarks - {"compile_mmcv"} == {*TOOLS}


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("/env/bin/mmlocal", "mmlocal train"),
        ("/env/mmlocal/__main__.py", "python -m mmlocal train"),
        ("tools/train.py", "python tools/train.py"),
    ],
)
def test_usage_shows_what_was_typed(script, shown, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script])
    assert cli.program("train") == shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["configs"],
        ["configs", "elsa_swin_t_maskrcnn_1x"],
        ["info", "--help"],
        ["info", "--compatibility"],
    ],
    ids=" ".join,
)
def test_imports_nothing_heavy(arguments):
    code = """
import json, sys
from mmlocal.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
heavy = {"torch", "numpy", "cv2", "mmengine", "mmcv"} & {*sys.modules}
print(json.dumps(sorted(heavy)))
"""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert len(done.stdout.splitlines()) > 1


def test_configs(capsys):
    for flag in ("--library", "--task"):  # --task is the older spelling
        cli.main(["configs", flag, "mmseg"])
        assert capsys.readouterr().out.split() == mmlocal.list_configs("mmseg")
    cli.main(["configs", "qna_vit_t_in1k_300e"])
    assert capsys.readouterr().out.strip() == mmlocal.config_path("qna_vit_t_in1k_300e")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["configs", "qna_vit_in1k_300e"])
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "did you mean " in error
    assert error.count("\n") == 1


def test_mistakes_end_in_one_line():
    result = run("trian")
    assert result.returncode == 2
    assert "invalid choice: 'trian'" in result.stderr
    result = run()
    assert result.returncode == 2
    assert "commands:" in result.stdout
    result = run("--version")
    assert result.stdout.strip() == f"mmlocal {mmlocal.__version__}"


def test_a_reader_that_stops_early_sees_no_traceback():
    command = f"{sys.executable} -m mmlocal configs | true"
    for _ in range(3):  # whether the reader ends first is chance
        result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
        assert result.stderr == ""


@pytest.mark.parametrize(
    ("absent", "mending"),
    [
        ("torch", "pip install torch==2.11.0 torchvision==0.26.0"),
        ("mmengine", "pip install onedl-mmengine=="),
        ("addict", "pip install addict"),
    ],
)
@pytest.mark.parametrize("start", ["mmlocal train", "tools/train.py"])
def test_missing_library_ends_in_one_line_with_its_mending(absent, mending, start, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
""")
    command = ["-m", "mmlocal", "train"] if start == "mmlocal train" else ["tools/train.py"]
    result = subprocess.run(
        [sys.executable, *command, "config.py"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(
        rf"error: python .* cannot run here: No module named '{absent}'\. "
        rf"Mend it with: {re.escape(mending)}.*\n",
        result.stderr,
    )


def test_a_module_of_our_own_that_is_missing_is_no_usage_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmlocal.cli.configs", None)
    with pytest.raises(ModuleNotFoundError, match=r"mmlocal\.cli\.configs"):
        cli.load("configs")

"""After a mistake, the user sees one message and no traceback, and the exit code is 2."""

import os

import pytest
import torch
from mmengine.config import Config

from mmlocal.cli import tool
from mmlocal.cli.runner import run_loop
from mmlocal.errors import UsageError

from .conftest import TOOLS, start, write_config


def fails(*command, cwd, **env) -> str:
    result = start(*command, cwd=cwd, **env)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    return result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["train", "print_config", "browse_dataset"])
def test_missing_config(tool, tmp_path):
    assert "'no/such.py'" in fails(TOOLS / f"{tool}.py", "no/such.py", cwd=tmp_path)


@pytest.mark.slow
def test_missing_checkpoints(data, tmp_path):
    config = write_config("mmpretrain", data, tmp_path / "c.py")
    assert "'no.pth'" in fails(TOOLS / "test.py", config, "no.pth", cwd=tmp_path)
    assert "'no.pth'" in fails(TOOLS / "train.py", config, "--resume", "no.pth", cwd=tmp_path)
    assert not (tmp_path / "work_dirs").exists()


@pytest.mark.slow
def test_missing_data(tmp_path):
    config = write_config("mmdet", tmp_path / "nowhere", tmp_path / "c.py")
    message = fails(TOOLS / "train.py", config, cwd=tmp_path)
    assert f"{tmp_path}/nowhere/det/train.json" in message
    assert "mmlocal demo" in message


@pytest.mark.slow
def test_flag_of_another_library(data, tmp_path):
    config = write_config("mmseg", data, tmp_path / "c.py")
    message = fails(TOOLS / "test.py", config, "any.pth", "--interval", "2", cwd=tmp_path)
    assert "error: --interval: applies to mmpretrain configs, this one is for mmseg" in message


@pytest.mark.slow
def test_malformed_option(data, tmp_path):
    result = start(TOOLS / "train.py", "c.py", "--cfg-options", "lr:1", cwd=tmp_path)
    assert result.returncode == 2
    assert "expected KEY=VALUE, got 'lr:1'" in result.stderr


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"])
def test_one_process_of_a_machine_speaks(variable, monkeypatch, capsys):
    naps = []
    monkeypatch.setattr(tool.time, "sleep", naps.append)

    def main():
        raise UsageError("no data")

    with pytest.raises(SystemExit, match="2"):
        tool.run_tool(main)
    assert capsys.readouterr().err == "error: no data\n"
    assert not naps
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SystemExit, match="2"):
        tool.run_tool(main)
    assert capsys.readouterr().err == ""
    assert naps, "must not end before the process that speaks"


@pytest.mark.parametrize("fails", [False, True])
def test_process_of_a_job_ends_without_teardown(fails, tmp_path):
    """Threads of the process group sometimes abort a process that tears Python down."""
    script = tmp_path / "job.py"
    script.write_text(f"""
import atexit, torch
from mmlocal.cli.tool import run_tool
from mmlocal.errors import UsageError

class Teardown:
    def __del__(self):
        print("torn down")

kept = Teardown()
atexit.register(print, "exit handlers ran")

def main():
    store = torch.distributed.FileStore("{tmp_path}/store", 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    if {fails}:
        raise UsageError("no data")

run_tool(main)
""")
    result = start(script, cwd=tmp_path)
    assert result.returncode == (2 if fails else 0), result.stderr
    assert "exit handlers ran" in result.stdout
    assert "torn down" not in result.stdout


@pytest.mark.slow
def test_checkpoint_with_code_is_refused(data, tmp_path):
    """MMEngine's second, unsafe try at loading must not happen."""
    config = write_config("mmpretrain", data, tmp_path / "c.py")
    torch.save({"state_dict": {}, "hook": _Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    message = fails(TOOLS / "test.py", config, "evil.pth", cwd=tmp_path)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD=0" in message
    assert not (tmp_path / "ran").exists()


class _Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.slow
def test_coco_absent(tmp_path):
    """A user tries the main config on a machine without COCO."""
    config = TOOLS.parent / "configs/mmdet/elsa_swin_t_maskrcnn_1x.py"
    message = fails(TOOLS / "train.py", config, cwd=tmp_path)
    assert "data/coco/annotations/instances_train2017.json" in message
    assert "Lay out COCO 2017" in message
    assert "mmlocal demo" in message


@pytest.mark.slow
def test_checkpoint_of_another_model(data, tmp_path):
    """Without this check, MMEngine would test random weights."""
    config = write_config("mmpretrain", data, tmp_path / "c.py")
    torch.save({"state_dict": {"head.fc.weight": torch.zeros(2, 9)}}, tmp_path / "other.pth")
    message = fails(TOOLS / "test.py", config, "other.pth", "--tta", cwd=tmp_path)
    assert "checkpoint 'other.pth' does not fit the model of the config: 0 loaded" in message
    assert "1 mismatched (head.fc.weight: (2, 9) for (2, 64))" in message


@pytest.mark.parametrize("chosen", [None, "0"])
def test_loading_is_safe_while_a_loop_runs_and_no_longer(chosen, monkeypatch):
    """A script that calls our functions keeps its own environment."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(name, chosen)
    assert run_loop(lambda: os.environ[name], Config()) == (chosen or "1")
    assert os.environ.get(name) == chosen

"""Progress of a child process, on a terminal and in a log."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmlocal.cli.progress import describe, run_step
from mmlocal.errors import UsageError

TRAIN = dict(phase="train", done=40, total=100, seconds_left=250, loss=0.51234, epoch=3, epochs=6)
# A child that reports three states, with a pause after each.
CHILD = """
import json, sys, time
from pathlib import Path

print("a line of a library")
for done in (10, 55, 100):
    state = dict({state}, done=done)
    Path("part").write_text(json.dumps(state))
    Path("part").replace({path!r})
    time.sleep({pause})
sys.exit({code})
"""
# A parent that shows the child's progress.
PARENT = """
import sys
from pathlib import Path
from mmlocal.cli.progress import ends_like_an_interrupt, run_step

with ends_like_an_interrupt():
    run_step("training", [sys.executable, "child.py"], Path("log"), Path("state"), "folder/log")
"""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "epoch 3 of 6, loss 0.512, 4 min left"),
        (dict(epoch=0, epochs=0), "step 40 of 100, loss 0.512, 4 min left"),
        (
            dict(phase="val", seconds_left=None),
            "epoch 3 of 6, validating, 40 of 100 images, loss 0.512",
        ),
        (dict(phase="test", loss=None, seconds_left=31.4), "40 of 100 images, 31 s left"),
        (dict(phase="test", loss=None, done=100), "100 of 100 images, computing the metrics"),
    ],
)
def test_words(changes, text):
    assert describe(TRAIN | changes) == text


def child(folder: Path, code: int = 0) -> list[str]:
    """``run_step`` looks every 0.2 s. A child that fails need not be seen before."""
    script = folder / "child.py"
    pause = 0 if code else 0.5
    state = dict(state=TRAIN, path=str(folder / "state"))
    script.write_text(CHILD.format(**state, code=code, pause=pause))
    return [sys.executable, str(script)]


def test_lines_in_a_log(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_step("training", child(tmp_path), Path("log"), Path("state"), "folder/log")
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "training: details are in folder/log"
    assert [line.split("%")[0] for line in lines[1:-1]] == [
        "training  10 ", "training  50 ", "training 100 "]  # fmt: skip
    assert "epoch 3 of 6, loss 0.512, 4 min left" in lines[1]
    assert lines[-1].startswith("training done in ")
    assert Path("log").read_text() == "a line of a library\n"


def test_failure_names_the_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"testing failed with exit code 3, see folder/log:\na li"):
        run_step("testing", child(tmp_path, 3), Path("log"), Path("state"), "folder/log")


def start_parent(folder: Path, pause: float, **streams) -> subprocess.Popen:
    (folder / "child.py").write_text(CHILD.format(state=TRAIN, path="state", code=0, pause=pause))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm"}
    command = [sys.executable, "-c", PARENT]
    return subprocess.Popen(command, cwd=folder, env=environment, **streams)


def test_one_line_on_a_terminal(tmp_path):
    master, slave = pty.openpty()
    with start_parent(tmp_path, 0.5, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                shown += os.read(master, 4096)
            except OSError:  # the other end is closed
                break
    os.close(master)
    assert process.returncode == 0
    text = shown.decode()
    assert "epoch 3 of 6, loss 0.512" in text
    assert "done in" in text
    assert "a line of a library" not in text
    # It goes back to the start of its line instead of writing a new one.
    assert text.count("\n") == 2
    assert text.count("\r") > 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_child_ends_with_an_interrupt(number, tmp_path):
    """The signal reaches only the parent, as from a job scheduler."""
    with start_parent(tmp_path, 1, stderr=subprocess.PIPE, text=True) as process:
        state = tmp_path / "state"
        while not state.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        assert "KeyboardInterrupt" in process.communicate(timeout=10)[1]
    seen = json.loads(state.read_text())
    time.sleep(1.5)
    assert json.loads(state.read_text()) == seen  # the child would have reported more

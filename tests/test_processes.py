"""Work in several processes: results, and what is left of them after an interrupt."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmlocal.processes import map_in_processes, usable_cores

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_in_order(workers):
    assert list(map_in_processes(abs, range(-5, 5), workers)) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    assert list(map_in_processes(abs, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_reach_the_caller(workers):
    with pytest.raises(ValueError, match="invalid literal"):
        list(map_in_processes(int, ["1", "2", "x"], workers))


def test_cores_of_a_distributed_job(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert usable_cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert usable_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert usable_cores() == 1


WORK = """
import signal, sys, time
from mmlocal.processes import map_in_processes

def work(item):
    print("working", flush=True)
    time.sleep(0.1)

if __name__ == "__main__":
    # A job in the background of a shell ignores interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    list(map_in_processes(work, range(10_000), 2))
    print("finished", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGINT, "all"), (signal.SIGINT, "first"), (signal.SIGKILL, "first")],
    ids=["terminal", "interrupted", "killed"],
)
def test_interrupts_leave_no_process(tmp_path, number, whom):
    """The workers end after the item in work, or at once if the main process is killed."""
    script = tmp_path / "work.py"
    script.write_text(WORK)
    process = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "working\n"
        wait_for(lambda: len(session(process.pid)) >= 3)  # with two workers
        kill = os.killpg if whom == "all" else os.kill
        kill(process.pid, number)
        try:
            code = process.wait(20)
        except subprocess.TimeoutExpired:  # Python drops an interrupt that meets a finalizer
            kill(process.pid, number)
            code = process.wait(40)
        assert code != 0
        wait_for(lambda: not session(process.pid))
        assert "finished" not in process.stdout.read()
    finally:
        if session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, group = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(group) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)

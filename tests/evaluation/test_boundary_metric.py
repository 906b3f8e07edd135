"""odsF of a set: images, subsets, processes and interrupts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlocal.evaluation.boundaries import boundary_counts, boundary_map, ods_f, quantize, thin
from mmlocal.evaluation.boundary_metric import BoundaryF

pytest.importorskip("scipy")
ROOT = Path(__file__).parents[2]


def make_maps(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a circle and a noisy prediction of it."""
    y, x = np.mgrid[:40, :50]
    label = np.abs(np.hypot(y - 20, x - 25) - 8 - seed) < 1
    noise = np.random.default_rng(seed).random(label.shape)
    pred = 0.6 * label + 0.4 * noise
    return torch.from_numpy(pred)[None].float(), torch.from_numpy(label)[None].long()


def expected_counts(pred: torch.Tensor, truth: np.ndarray, **changes) -> np.ndarray:
    return boundary_counts(quantize(pred[0].numpy()), thin(truth), 0.02, **changes)


def test_value_of_a_set():
    metric = BoundaryF(0.02, num_workers=0)
    maps = [make_maps(seed) for seed in range(3)]
    counts = metric.counts([metric.pack(*pair, "") for pair in maps])
    expected = [expected_counts(pred, label[0].numpy() == 1) for pred, label in maps]
    assert (np.stack(counts)[:, :-1] == expected).all()
    assert metric.value(sum(counts)) == ods_f(sum(expected)) > 0.5
    assert np.isnan(metric.value(counts[0] * 0))


def test_options():
    pred, label = make_maps(0)
    truth = label[0].numpy() == 1
    metric = BoundaryF(0.02, boundary_map=True, nms=False, num_workers=0)
    (found,) = metric.counts([metric.pack(pred, label, "")])
    assert (found[:-1] == expected_counts(pred, boundary_map(truth), suppress=False)).all()
    assert (found[:-1] != expected_counts(pred, truth)).any()


def test_ignored_pixels():
    pred, label = make_maps(0)
    label[:, :20] = 255
    metric = BoundaryF(0.02, num_workers=0)
    (found,) = metric.counts([metric.pack(pred, label, "")])
    pred[:, :20] = 0
    assert (found[:-1] == expected_counts(pred, label[0].numpy() == 1)).all()


def test_subset(tmp_path, monkeypatch):
    messages = []
    log = lambda message, **kwargs: messages.append(message)  # noqa: E731
    monkeypatch.setattr("mmlocal.evaluation.boundary_metric.print_log", log)
    path = tmp_path / "test_new.txt"
    path.write_text("b\nc\n")
    metric, everything = BoundaryF(0.02, subset=path, num_workers=0), BoundaryF(0.02, num_workers=0)
    maps = {name: make_maps(seed) for seed, name in enumerate("abc")}
    packed = [metric.pack(*maps[name], name) for name in "abc"]
    assert packed[0] is None
    total = sum(metric.counts(packed))
    rest = sum(everything.counts([everything.pack(*maps[name], name) for name in "bc"]))
    assert (total == rest).all()
    assert metric.value(total) == everything.value(rest)
    assert messages == []
    metric.value(sum(metric.counts(packed[:2])))
    assert "subset names 2 images, and 1 of them were evaluated" in messages[0]


@pytest.mark.slow
def test_several_processes():
    serial, parallel = BoundaryF(0.02, num_workers=0), BoundaryF(0.02, num_workers=2)
    packed = [serial.pack(*make_maps(seed), "") for seed in range(9)]
    packed.insert(4, None)
    for one, other in zip(serial.counts(packed), parallel.counts(packed), strict=True):
        assert (one == other).all()


WORK = """
import os, time
import numpy as np
from mmlocal.evaluation import boundary_metric

if __name__ == "__main__":
    noise = np.random.default_rng(0).random((700, 900))
    image = boundary_metric.PackedBoundaries(
        boundary_metric._encode((255 * noise).astype(np.uint8)),
        boundary_metric._encode((noise > 0.9).astype(np.uint8) * 255),
    )
    print("started", flush=True)
    boundary_metric.BoundaryF(0.01, num_workers=2).counts([image] * 100)
    print("finished", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupts_leave_no_process(tmp_path, number):
    """The workers end after the image in work, or at once if the main process is killed."""
    script = tmp_path / "work.py"
    script.write_text(WORK)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "started\n"
        wait_for(lambda: len(session(process.pid)) >= 3)  # with two workers
        time.sleep(1)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.kill()
        assert process.wait(120) != 0
        assert process.stdout.read() == ""
        wait_for(lambda: not session(process.pid))
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
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(max_dist=0), "max_dist must be a fraction of the diagonal, got 0"),
        (dict(max_dist=4), "max_dist must be a fraction of the diagonal, got 4"),
        (dict(num_workers=-1), "num_workers must be 0 or more, got -1"),
        (dict(subset="missing.txt"), "subset must be a text file"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        BoundaryF(**{"max_dist": 0.01, **changes})


def test_empty_subset(tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"subset .*empty\.txt names no image"):
        BoundaryF(0.01, subset=path)


def test_wrong_labels():
    pred, label = make_maps(0)
    with pytest.raises(ValueError, match="the label must hold 0, 1 and 255"):
        BoundaryF(0.01).pack(pred, label * 2, "")


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        BoundaryF(0.01)

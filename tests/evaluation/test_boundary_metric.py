"""odsF of a set: images, subsets and processes."""

import sys

import numpy as np
import pytest
import torch

from mmlocal.evaluation.boundaries import boundary_counts, boundary_map, ods_f, quantize, thin
from mmlocal.evaluation.boundary_metric import BoundaryF

pytest.importorskip("scipy")


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
    path.write_text("\ufeffb\r\n\r\nc \r\n", encoding="utf-8", newline="")  # of Windows
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

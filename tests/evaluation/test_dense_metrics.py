"""The metrics of single tasks, compared with numbers of the original classes and with loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlocal.evaluation.dense_metrics import RMSE, MaxF, MeanAngle, MeanIoU

GOLDEN = Path(__file__).parents[1] / "data" / "mtl" / "mtl_metrics.npz"
# The metric of each golden case, and the map that it takes from the network's output.
CASES = {
    "miou": (MeanIoU(6), lambda logits: logits.argmax(0, keepdim=True)),
    "maxf": (MaxF(), lambda logits: logits.softmax(0)[1:]),
    "merr_deg": (MeanAngle(), lambda output: output),
    "rmse": (RMSE(), lambda output: output),
}


def total(metric, pairs) -> np.ndarray:
    return sum(metric.sums(pred, label).numpy() for pred, label in pairs)


@pytest.mark.parametrize("name", CASES)
def test_original_classes(name):
    """Two batches of two images; the original accumulates in float32."""
    golden = np.load(GOLDEN, allow_pickle=False)
    metric, to_map = CASES[name]
    pairs = [
        (to_map(torch.from_numpy(pred)), torch.from_numpy(label))
        for batch in (0, 1)
        for pred, label in zip(
            golden[f"{name}.pred{batch}"], golden[f"{name}.label{batch}"], strict=True
        )
    ]
    assert metric.value(total(metric, pairs)) == pytest.approx(float(golden[f"{name}.value"]), 1e-6)
    assert total(metric, pairs).dtype == np.float64


def test_mean_iou_counts_absent_classes_as_0():
    label = torch.tensor([[[0, 0, 1, 255]]])
    pred = torch.tensor([[[0, 1, 1, 3]]])
    assert MeanIoU(2).value(total(MeanIoU(2), [(pred % 2, label)])) == 0.5
    assert MeanIoU(4).value(total(MeanIoU(4), [(pred, label)])) == 0.25


def test_mean_iou_against_loops():
    rng = torch.Generator().manual_seed(0)
    pred, label = torch.randint(5, (2, 3, 1, 6, 7), generator=rng)
    label[0, 0, 0] = 255
    both, either = np.zeros(5), np.zeros(5)
    for p, t in zip(pred.flatten().tolist(), label.flatten().tolist(), strict=True):
        for k in range(5):
            both[k] += p == k and t == k
            either[k] += t != 255 and (p == k or t == k)
    metric = MeanIoU(5)
    pairs = zip(pred, label, strict=True)
    assert metric.value(total(metric, pairs)) == pytest.approx(np.mean(both / either), 1e-12)


def test_max_f_against_loops():
    rng = torch.Generator().manual_seed(0)
    pred = torch.rand(3, 1, 6, 7, generator=rng)
    pred[0, 0, 0] = torch.arange(7) / 20  # at thresholds
    label = torch.randint(2, pred.shape, generator=rng)
    label[1, 0, 2] = 255
    best = 0.0
    for step in range(1, 20):
        true = predicted = actual = 0
        for p, t in zip(pred.flatten().tolist(), label.flatten().tolist(), strict=True):
            if t != 255:
                positive = p >= float(np.float32(step / 20))
                true, predicted, actual = true + positive * t, predicted + positive, actual + t
        if true:
            precision, recall = true / predicted, true / actual
            best = max(best, 1.3 * precision * recall / (0.3 * precision + recall))
    metric = MaxF()
    pairs = zip(pred, label, strict=True)
    assert metric.value(total(metric, pairs)) == pytest.approx(best, 1e-12)


def test_max_f_without_positives():
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    assert MaxF().value(total(MaxF(), [(torch.ones(1, 2, 2), label)])) == 0


def test_max_f_of_predictions_that_are_no_numbers():
    label = torch.ones(1, 2, 2, dtype=torch.long)
    assert MaxF().value(total(MaxF(), [(torch.full((1, 2, 2), math.nan), label)])) == 0
    assert MaxF().value(total(MaxF(), [(torch.full((1, 2, 2), math.inf), label)])) == 1


def test_rmse_ignores_holes_and_clamps():
    label = torch.tensor([[[2.0, 0.0, 255.0, math.nan, math.inf, 1.0]]])
    pred = torch.tensor([[[5.0, 9.0, 9.0, 9.0, 9.0, -7.0]]])
    assert RMSE().value(total(RMSE(), [(pred, label)])) == math.sqrt((9 + 1) / 2)


def test_mean_angle():
    label = torch.tensor([[0.0, 0, 1, 0], [0, 255, 0, 0], [3, 1, 0, 1]])[:, None]
    pred = torch.tensor([[0.0, 1, -1, 1], [0, 0, 0, 0], [1, 0, 0, 1]])[:, None]
    mean = MeanAngle().value(total(MeanAngle(), [(pred, label)]))
    assert mean == pytest.approx((0 + 180 + 45) / 3, 1e-7)


@pytest.mark.parametrize("metric", [MeanIoU(2), MaxF(), RMSE(), MeanAngle()])
def test_nothing_valid(metric):
    channels = 3 if isinstance(metric, MeanAngle) else 1
    label = torch.full((channels, 2, 3), 255)
    sums = total(metric, [(torch.zeros(channels, 2, 3), label)])
    assert not sums.any()
    assert math.isnan(metric.value(sums))


def test_wrong_values():
    three = torch.full((1, 2, 2), 3)
    with pytest.raises(
        ValueError, match=r"the label has classes from 3 to 3, but num_classes is 3"
    ):
        MeanIoU(3).sums(three * 0, three)
    with pytest.raises(ValueError, match=r"the prediction has classes from 3 to 3"):
        MeanIoU(3).sums(three, three * 0)
    with pytest.raises(ValueError, match="0, 1 and 255"):
        MaxF().sums(three / 3, three)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        MeanIoU(0)

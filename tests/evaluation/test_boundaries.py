"""The steps of odsF, compared with loops, with other libraries, and with numbers of pyEdgeEval."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from mmlocal.evaluation.boundaries import (
    THRESHOLDS,
    boundary_counts,
    boundary_map,
    ods_f,
    quantize,
    suppress_non_maxima,
    thin,
)

STORED = Path(__file__).parents[1] / "data" / "boundaries" / "pyedgeeval.npz"


@pytest.fixture
def stored():
    pytest.importorskip("scipy")
    return np.load(STORED, allow_pickle=False)


def test_thresholds():
    assert len(THRESHOLDS) == 101
    expected = np.array([0.001, 0.01, 0.5, 0.99, 0.999], np.float32)
    assert (THRESHOLDS[[0, 1, 50, 99, 100]] == expected).all()


def test_quantize_rounds_down():
    found = quantize(np.array([0, 0.5, 0.9999, 1], np.float32))
    assert found.tolist() == [0, 127, 254, 255]
    assert found.dtype == np.uint8
    assert quantize(np.array([np.nan, np.inf, -np.inf, -0.1, 1.1])).tolist() == [0, 255, 0, 0, 255]


def test_boundary_map_against_loops():
    labels = np.random.default_rng(0).integers(2, size=(7, 9))
    expected = np.zeros(labels.shape, bool)
    for y in range(7):
        for x in range(9):
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                if y + dy < 7 and x + dx < 9 and labels[y + dy, x + dx] != labels[y, x]:
                    expected[y, x] = True
    found = boundary_map(labels)
    # In the last row and column, MATLAB's routine looks along the border only, which is the same.
    assert (found == expected).all()
    assert not boundary_map(np.ones((3, 4))).any()


def test_thinning_equals_skimage():
    skimage = pytest.importorskip("skimage.morphology")
    rng = np.random.default_rng(0)
    for density in (0.05, 0.3, 0.5, 0.7, 0.95):
        mask = rng.random((40, 50)) < density
        assert (thin(mask) == skimage.thin(mask)).all()
    blobs = np.kron(rng.random((6, 7)) < 0.5, np.ones((9, 7), bool))
    assert (thin(blobs) == skimage.thin(blobs)).all()


def test_suppression_against_loops():
    """The formulas in double precision. Rounding decides a few ties, such as on plateaus."""
    rng = np.random.default_rng(0)
    height, width = 30, 24
    y, x = np.mgrid[:height, :width]
    ridges = np.exp(-((x - 12 + 5 * np.sin(y / 8)) ** 2) / 8) + 0.3 * rng.random((height, width))
    edges = quantize(ridges / ridges.max())
    values = edges / 255
    triangle = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
    padded = np.pad(values, 4, mode="symmetric")
    smooth = np.zeros(values.shape)
    for i in range(9):
        for j in range(9):
            window = padded[i : i + height, j : j + width]
            smooth += triangle[i] * triangle[j] * window
    dy, dx = np.gradient(smooth)
    (dyy, dxy), (_, dxx) = np.gradient(dy), np.gradient(dx)
    expected = values.copy()
    for i in range(height):
        for j in range(width):
            slope = dyy[i, j] * np.sign(-dxy[i, j]) / (dxx[i, j] + 1e-5)
            angle = math.atan(slope) % math.pi
            for side in (-1, 1):
                v = min(max(i + side * math.sin(angle), 0), height - 1.001)
                u = min(max(j + side * math.cos(angle), 0), width - 1.001)
                a, b = v - int(v), u - int(u)
                corners = values[int(v) : int(v) + 2, int(u) : int(u) + 2]
                neighbour = np.array([1 - a, a]) @ corners @ np.array([1 - b, b])
                if values[i, j] * 1.01 < neighbour:
                    expected[i, j] = 0
            border = min(i, j, height - 1 - i, width - 1 - j)
            for distance in (min(i, height - 1 - i), min(j, width - 1 - j)):
                expected[i, j] *= min(distance / 5, 1)
            assert border > 0 or expected[i, j] == 0
    found = suppress_non_maxima(edges)
    same = (found > 0) == (expected > 0)
    assert (~same).sum() <= 2
    assert np.abs(found - expected)[same].max() < 1e-6
    assert 0.1 < (found > 0).mean() < 0.9


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_tiny_maps(shape):
    """A single row or column has no curvature, so that all its pixels stay."""
    pytest.importorskip("scipy")
    edges = np.full(shape, 100, np.uint8)
    if min(shape) == 1:
        assert (suppress_non_maxima(edges) == np.float32(100 / 255)).all()
    counts = boundary_counts(edges, edges > 0, 0.1)
    assert counts[-1] == edges.size
    assert (counts[0] > 0) == (min(shape) == 1)  # the border of 2x2 pixels fades to 0


def test_matching_against_the_assignment_problem():
    """A largest matching is the optimum of the original, which pays 100 distances per outlier."""
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    for density in (0.02, 0.1, 0.3):
        edges = np.where(rng.random((20, 25)) < density, 200, 0).astype(np.uint8)
        truth = rng.random((20, 25)) < 0.1
        max_dist = 2.3 / math.hypot(20, 25)
        found = boundary_counts(edges, truth, max_dist, suppress=False)
        pred = np.argwhere(thin(edges > 0))
        distance = np.linalg.norm(pred[:, None] - np.argwhere(truth), axis=-1)
        cost = np.where(distance <= 2.3, distance, 230)
        matches = (cost[optimize.linear_sum_assignment(cost)] < 230).sum()
        assert found[0] == matches > 0
        assert found[101] == len(pred)
        assert found[-1] == truth.sum()
        assert found[100] == found[201] == 0  # nothing is above 0.999


def test_a_level_that_equals_a_threshold():
    """A pixel has to be above the threshold, and 51 / 255 is 0.2."""
    pytest.importorskip("scipy")
    edges = np.zeros((9, 9), np.uint8)
    edges[4, 2], edges[4, 6] = 51, 52
    found = boundary_counts(edges, edges > 0, 0.01, suppress=False)
    assert found[[19, 20, 21]].tolist() == [2, 1, 0]


def test_perfect_and_empty_predictions():
    pytest.importorskip("scipy")
    truth = np.zeros((40, 50), bool)
    truth[20, 5:45] = True
    assert ods_f(boundary_counts(truth * np.uint8(255), truth, 0.01)) == 1
    assert ods_f(boundary_counts(truth * np.uint8(0), truth, 0.01)) == 0
    assert ods_f(boundary_counts(truth * np.uint8(255), truth & False, 0.01)) == 0
    shifted = np.roll(truth, 3, 0) * np.uint8(255)
    assert ods_f(boundary_counts(shifted, truth, 0.04)) == 0  # 2.56 pixels
    assert ods_f(boundary_counts(shifted, truth, 0.05)) == 1  # 3.2 pixels


def test_ods_against_the_formula():
    rng = np.random.default_rng(0)
    predicted = np.sort(rng.integers(50, 100, 101))[::-1]
    matched, true = predicted - rng.integers(0, 40, 101), 120
    precision, recall = matched / predicted, matched / true
    expected = (2 * precision * recall / (precision + recall)).max()
    assert ods_f(np.concatenate([matched, predicted, [true]])) == pytest.approx(expected)


def test_suppression_of_pyedgeeval(stored):
    """It works in double precision, so rounding decides other ties."""
    for edges, expected in zip(stored["edges"], stored["kept"], strict=True):
        found = suppress_non_maxima(edges)
        same = (found > 0) == (expected > 0)
        print(f"{(~same).sum()} of {(expected > 0).sum()} pixels differ")
        assert (~same).sum() <= 0.002 * (expected > 0).sum()
        assert np.abs(found - expected)[same].max() < 1e-6


def compare(counts: np.ndarray, edges: np.ndarray, truths: list, max_dist: float) -> None:
    """Compare all F-measures of a set with those by numbers of pyEdgeEval, ``(3, T)``."""
    total = sum(boundary_counts(*pair, max_dist) for pair in zip(edges, truths, strict=True))
    matched, predicted, true = counts
    f = 2 * matched / np.maximum(predicted + true, 1)
    ours = 2 * total[:101] / np.maximum(total[101:202] + total[202], 1)
    print(f"odsF {ours.max():.4f} and {f.max():.4f}; worst F {np.abs(ours - f).max():.4f}")
    assert ods_f(total) == pytest.approx(f.max(), abs=0.003)
    assert ours == pytest.approx(f, abs=0.005)
    assert 0.3 < f.max() < 0.95


def test_protocol_of_pyedgeeval(stored):
    truths = [thin(boundary_map(regions)) for regions in stored["regions"]]
    compare(stored["counts"].sum(0), stored["edges"], truths, float(stored["max_dist"]))


def test_protocol_of_pyedgeeval_live():
    """A larger image, where pyEdgeEval is installed."""
    pytest.importorskip("pyEdgeEval")
    sys.path.insert(0, str(Path(__file__).parent))
    from pyedgeeval import make_image, original_counts

    regions, edges = make_image(7, 160, 200)
    truth = thin(boundary_map(regions))
    compare(original_counts(edges, truth, 0.0075)[1], edges[None], [truth], 0.0075)

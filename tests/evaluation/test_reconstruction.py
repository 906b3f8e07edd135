"""The metrics of reconstructed images, compared with their formulas."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from mmlocal.evaluation import ReconstructionMetric, image_quality


@pytest.fixture
def quality():
    pytest.importorskip("skimage")
    return image_quality


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Compute equation 13 of Wang et al. 2004 over all whole windows."""
    x = np.arange(-5, 6)
    line = np.exp(-(x**2) / (2 * 1.5**2))
    window = torch.from_numpy(np.outer(line, line) / line.sum() ** 2)[None, None]

    def mean(image: np.ndarray) -> np.ndarray:
        return nn.functional.conv2d(torch.from_numpy(image)[:, None], window)[:, 0].numpy()

    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2, mean(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mu_a * mu_b + c1) * (2 * cov + c2)
    return (similarity / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))).mean()


def test_metrics_against_formulas(quality):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 17, 20))
    found = quality(a, b)
    assert found["l1"] == pytest.approx(np.abs(a - b).mean())
    assert found["mse"] == pytest.approx(((a - b) ** 2).mean())
    assert found["psnr"] == pytest.approx(-10 * np.log10(((a - b) ** 2).mean()))
    assert found["ssim"] == pytest.approx(ssim(a, b), rel=1e-9)
    assert quality(a, a) == dict(l1=0.0, mse=0.0, psnr=np.inf, ssim=pytest.approx(1.0))
    with pytest.raises(ValueError, match=r"shape of image, \(3, 17, 19\), got \(3, 17, 20\)"):
        quality(a, b[:, :, 1:])


def test_metric_averages_over_images(quality):
    metric = ReconstructionMetric()
    pairs = torch.rand(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = [dict(pred_image=pred, gt_image=image) for pred, image in pairs]
    for batch in (samples[:2], samples[2:]):
        metric.process({}, batch)
    results = metric.evaluate(size=3)
    expected = [quality(pred.numpy(), image.numpy()) for pred, image in pairs]
    assert results == {
        f"reconstruction/{name}": pytest.approx(np.mean([value[name] for value in expected]))
        for name in ("l1", "mse", "psnr", "ssim")
    }


def test_metric_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        ReconstructionMetric()

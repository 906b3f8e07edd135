"""Metrics of reconstructed images, computed by scikit-image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric

from mmlocal.registry import METRICS


def image_quality(pred: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """Compare two images.

    Args:
        pred: ``(C, H, W)``, any float dtype, in [0, 1], with ``H`` and ``W`` of at least 11 pixels.
        image: the original image, ``(C, H, W)``, any float dtype, in [0, 1].

    Returns:
        ``l1`` and ``mse``: means over pixels and channels. ``psnr``: in dB for a peak of 1, and
        infinite for equal images. ``ssim``: mean over pixels and channels, with the Gaussian window
        of Wang et al. 2004.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: the shapes differ, or the images are smaller than the window.
    """
    _require_skimage()
    from skimage.metrics import (
        mean_squared_error,
        peak_signal_noise_ratio,
        structural_similarity,
    )

    pred, image = np.asarray(pred, np.float64), np.asarray(image, np.float64)
    if pred.shape != image.shape:
        raise ValueError(f"pred must have the shape of image, {image.shape}, got {pred.shape}")
    with np.errstate(divide="ignore"):  # the MSE of equal images is 0
        psnr = peak_signal_noise_ratio(image, pred, data_range=1.0)
    ssim = structural_similarity(
        image,
        pred,
        channel_axis=0,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return dict(
        l1=float(np.abs(pred - image).mean()),
        mse=float(mean_squared_error(image, pred)),
        psnr=float(psnr),
        ssim=float(ssim),
    )


@METRICS.register_module()
class ReconstructionMetric(BaseMetric):
    """L1, MSE, PSNR and SSIM of reconstructed images, each a mean over the images.

    The metric compares ``pred_image`` with ``gt_image`` in each sample by :func:`image_quality`.

    Args:
        collect_device: device on which MMEngine collects results from other processes.
        prefix: prefix of the names of the metrics; ``None`` for ``reconstruction``.

    Raises:
        ImportError: scikit-image is not installed.
    """

    default_prefix = "reconstruction"

    def __init__(self, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        _require_skimage()

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Compare the images of one batch."""
        for sample in data_samples:
            pred, image = (sample[name].cpu().numpy() for name in ("pred_image", "gt_image"))
            self.results.append(image_quality(pred, image))

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Average over the images."""
        return {name: float(np.mean([result[name] for result in results])) for name in results[0]}


def _require_skimage() -> None:
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ReconstructionMetric needs scikit-image ({error}): pip install scikit-image"
        ) from error

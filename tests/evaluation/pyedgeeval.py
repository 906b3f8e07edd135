"""Boundaries matched by pyEdgeEval, which holds the C++ code of BSDS and of Dollar's toolbox.

``python tests/evaluation/pyedgeeval.py`` writes ``tests/data/boundaries/pyedgeeval.npz``.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from skimage.morphology import thin

STORED = Path(__file__).parents[1] / "data" / "boundaries" / "pyedgeeval.npz"
THRESHOLDS = [0.001, *(k / 100 for k in range(1, 100)), 0.999]


def make_image(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Make regions with wavy borders, and a blurred, shifted and noisy prediction of the borders.

    Args:
        seed: seed of the generator.
        height: height of the image.
        width: width of the image.

    Returns:
        The map of regions, int, and the prediction, uint8, each ``(height, width)``.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centres = rng.random((max(4, height * width // 4000), 2)) * [height, width]
    waves = np.stack([y + 3 * np.sin(x / 9), x + 3 * np.sin(y / 7)], -1)
    regions = np.linalg.norm(waves[:, :, None] - centres, axis=-1).argmin(-1)
    edges = (np.diff(regions, axis=0, append=regions[-1:]) != 0).astype(np.float32)
    edges *= rng.uniform(0.3, 1, len(centres)).astype(np.float32)[regions]
    shift = np.array([[1, 0, rng.normal() * 1.5], [0, 1, rng.normal() * 1.5]], np.float32)
    blurred = cv2.GaussianBlur(cv2.warpAffine(edges, shift, (width, height)), (0, 0), 2)
    noise = rng.standard_normal((height, width)).astype(np.float32)
    logits = 12 * blurred - 3 + 5 * cv2.GaussianBlur(noise, (0, 0), 4)
    return regions, (255 / (1 + np.exp(-logits))).astype(np.uint8)


def original_counts(
    edges: np.ndarray, truth: np.ndarray, max_dist: float
) -> tuple[np.ndarray, np.ndarray]:
    """Run the protocol by pyEdgeEval, with scikit-image's thinning.

    pyEdgeEval's own thinning stops too early in some cases.

    Args:
        edges: prediction, ``(H, W)``, uint8.
        truth: thinned ground truth, ``(H, W)``, bool.
        max_dist: largest distance, as a fraction of the diagonal.

    Returns:
        The suppressed prediction, ``(H, W)``, and the numbers of matched and predicted pixels and
        of pixels of the ground truth, ``(3, T)``.
    """
    from pyEdgeEval._lib import correspond_pixels, nms
    from pyEdgeEval.preprocess.nms.toolbox import conv_tri, grad2

    values = edges / 255
    dx, dy = grad2(conv_tri(values, 4))
    (dxx, _), (dxy, dyy) = grad2(dx), grad2(dy)
    kept = nms(values, np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5)), np.pi), 1, 5, 1.01)
    counts = []
    for threshold in THRESHOLDS:
        mask = thin(kept > threshold)
        matched = correspond_pixels(mask, truth, max_dist)[0] > 0
        counts.append((matched.sum(), mask.sum(), truth.sum()))
    return kept, np.array(counts).T


def main() -> None:
    """Write the stored numbers."""
    cases = [make_image(seed, 96, 128) for seed in range(4)]
    edges = np.stack([case[1] for case in cases])
    regions = np.stack([case[0] for case in cases]).astype(np.uint8)
    truth = []
    for region in regions:
        padded = np.pad(region, ((0, 1), (0, 1)), "edge")
        neighbours = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
        truth.append(thin(np.any([region != other for other in neighbours], axis=0)))
    found = [original_counts(*pair, 0.011) for pair in zip(edges, truth, strict=True)]
    np.savez_compressed(
        STORED,
        edges=edges,
        regions=regions,
        kept=np.stack([kept for kept, _ in found]).astype(np.float32),
        counts=np.stack([counts for _, counts in found]).astype(np.int32),
        max_dist=0.011,
    )


if __name__ == "__main__":
    main()

"""Boundaries of one image, compared by the protocol of SEISM and BSDS.

A prediction is an 8-bit map of probabilities. Non-maximum suppression leaves its ridges. At each of
101 thresholds, the ridges are thinned, and each boundary pixel is matched with at most one pixel of
the ground truth within a distance. The numbers of matched and of all pixels of a set give its
F-measure.

Source:
    Pont-Tuset and Marques, "Supervised Evaluation of Image Segmentation and Object Proposal
    Techniques", TPAMI 2016 (SEISM); Martin et al., "Learning to Detect Natural Image Boundaries
    Using Local Brightness, Color, and Texture Cues", TPAMI 2004 (matching); Dollar and Zitnick,
    "Fast Edge Detection Using Structured Forests", TPAMI 2015 (suppression). Written from these
    texts and the published protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

#: The thresholds of SEISM. Single precision, because some of them equal a level of 8 bit.
THRESHOLDS = np.array([0.001, *(k / 100 for k in range(1, 100)), 0.999], np.float32)


def quantize(probability: np.ndarray) -> np.ndarray:
    """Turn probabilities into the levels of an 8-bit image, rounded down as the original does.

    Args:
        probability: any shape, any float dtype, in [0, 1]. What is not a number counts as 0.

    Returns:
        uint8, of the same shape.
    """
    return (255 * np.nan_to_num(probability).clip(0, 1)).astype(np.uint8)


def boundary_map(labels: np.ndarray) -> np.ndarray:
    """Mark the pixels whose right, lower or lower right neighbour has another label.

    Args:
        labels: ``(H, W)``, any dtype. A map of boundaries is a map of two labels.

    Returns:
        ``(H, W)``, bool. Lines are two pixels wide at corners, so thin them.

    Source:
        Martin et al.; SEISM takes this map of each ground truth.
    """
    padded = np.pad(labels, ((0, 1), (0, 1)), mode="edge")
    return (labels != padded[:-1, 1:]) | (labels != padded[1:, :-1]) | (labels != padded[1:, 1:])


def _thinning_tables() -> list[np.ndarray]:
    """Tabulate which pixels stay in the two steps of thinning, by the code of their neighbours."""
    bits = (np.arange(256) >> np.arange(8)[:, None]) & 1 == 1  # east, then counter-clockwise

    def neighbour(k: int) -> np.ndarray:
        return bits[k % 8]

    crossings = sum(
        (~neighbour(k) & (neighbour(k + 1) | neighbour(k + 2))).astype(int) for k in range(0, 8, 2)
    )
    pairs = [
        sum((neighbour(k) | neighbour(k + step)).astype(int) for k in range(1, 8, 2))
        for step in (-1, 1)
    ]
    removable = (crossings == 1) & np.isin(np.minimum(*pairs), (2, 3))
    tables = []
    for k in (0, 4):
        side = (neighbour(k + 1) | neighbour(k + 2) | ~neighbour(k + 7)) & neighbour(k)
        tables.append((~(removable & ~side)).astype(np.uint8))
    return tables


_STAY = _thinning_tables()
_NEIGHBOURS = np.array([[8, 4, 2], [16, 0, 1], [32, 64, 128]], np.float32)


def thin(mask: np.ndarray) -> np.ndarray:
    """Thin lines until they are one pixel wide.

    Args:
        mask: ``(H, W)``, bool.

    Returns:
        ``(H, W)``, bool.

    Note:
        The result equals ``skimage.morphology.thin(mask)``, which takes several times as long, and
        MATLAB's ``bwmorph(mask, 'thin', Inf)``.

    Source:
        Guo and Hall, "Parallel thinning with two-subiteration algorithms", CACM 1989.
    """
    image = mask.astype(np.uint8)
    while True:
        before = cv2.countNonZero(image)
        for stay in _STAY:
            codes = cv2.filter2D(image, -1, _NEIGHBOURS, borderType=cv2.BORDER_CONSTANT)
            image &= np.asarray(cv2.LUT(codes, stay), np.uint8)
        if cv2.countNonZero(image) == before:
            return image.astype(bool)


def suppress_non_maxima(edges: np.ndarray) -> np.ndarray:
    """Keep the ridges of a map of boundaries.

    A pixel stays if no pixel at distance 1 across the boundary is larger by more than 1 %. The
    orientation is the direction of the largest curvature of the map, smoothed by a triangle filter
    of radius 4. Values within 5 pixels of the border fade out linearly.

    Args:
        edges: ``(H, W)``, uint8.

    Returns:
        ``(H, W)``, float32 in [0, 1]. All pixels of a single row or column stay, because it has no
        curvature.

    Source:
        Dollar and Zitnick; radius 1, border 5, factor 1.01.
    """
    values = edges.astype(np.float32) / 255
    if min(values.shape) < 2:
        return values
    kernel = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1], np.float32) / 25
    smooth = cv2.sepFilter2D(values, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT)
    dy, dx = np.gradient(smooth)
    dxx = np.gradient(dx, axis=1)
    dyy, dxy = np.gradient(dy)
    orientation = np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + np.float32(1e-5))), np.pi)

    height, width = values.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cos, sin = np.cos(orientation), np.sin(orientation)
    kept = values.copy()
    for side in (-1, 1):
        kept[values * np.float32(1.01) < _sample(values, y + side * sin, x + side * cos)] = 0
    for axis, size in enumerate(values.shape):
        border = min(5, size // 2)
        fade = np.ones(size, np.float32)
        fade[:border] = np.arange(border) / border
        fade[size - border :] = fade[:border][::-1]
        kept *= np.expand_dims(fade, 1 - axis)
    return kept


def _sample(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate bilinearly at positions that are clamped to the map."""
    height, width = values.shape
    x, y = np.clip(x, 0, np.float32(width - 1.001)), np.clip(y, 0, np.float32(height - 1.001))
    x0, y0 = x.astype(int), y.astype(int)
    dx, dy = x - x0, y - y0
    return (
        values[y0, x0] * (1 - dx) * (1 - dy)
        + values[y0, x0 + 1] * dx * (1 - dy)
        + values[y0 + 1, x0] * (1 - dx) * dy
        + values[y0 + 1, x0 + 1] * dx * dy
    )


def boundary_counts(
    edges: np.ndarray,
    truth: np.ndarray,
    max_dist: float,
    suppress: bool = True,
    thresholds: np.ndarray = THRESHOLDS,
) -> np.ndarray:
    """Match the boundaries of one image at all thresholds.

    Args:
        edges: predicted boundaries, ``(H, W)``, uint8.
        truth: thinned boundaries of the ground truth, ``(H, W)``, bool.
        max_dist: largest distance of matched pixels, as a fraction of the image's diagonal.
        suppress: whether to keep only the ridges of ``edges``.
        thresholds: ``(T,)``, float32, ascending. A pixel above a threshold is a boundary.

    Returns:
        ``(2 T + 1,)``, float64: the numbers of matched pixels of each threshold, the numbers of
        predicted pixels of each threshold, and the number of pixels of ``truth``.

    Raises:
        ImportError: SciPy is not installed.

    Note:
        The original minimises the sum of distances, where an unmatched pixel costs 100 times
        ``max_dist``. The optimum is a largest matching, unless a chain of about a hundred pixels
        has to shift for one more match. We count a largest matching. The solver of the original
        chooses among a few random edges for unmatched pixels, and misses up to 0.3 % of the
        matches. ``tests/data/boundaries`` has the comparison.
    """
    values = suppress_non_maxima(edges) if suppress else edges.astype(np.float32) / 255
    candidates = values > thresholds[0]
    pairs = _pairs(candidates, truth, max_dist * float(np.hypot(*values.shape)))
    row = np.cumsum(candidates).reshape(candidates.shape) - 1
    matched, predicted = np.zeros((2, len(thresholds)))
    last = -1
    for k, threshold in enumerate(thresholds):
        mask = values > threshold
        pixels = np.count_nonzero(mask)
        if pixels == last:  # the same mask
            matched[k], predicted[k] = matched[k - 1], predicted[k - 1]
        elif pixels:
            thinned = thin(mask)
            matched[k], predicted[k] = _match(pairs[row[thinned]]), np.count_nonzero(thinned)
        last = pixels
    return np.concatenate([matched, predicted, [np.count_nonzero(truth)]])


def _pairs(mask: np.ndarray, truth: np.ndarray, distance: float) -> csr_matrix:
    """Find the pixels of two masks within a distance: a row for each pixel of the first."""
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    first, second = (cKDTree(np.argwhere(pixels)) for pixels in (mask, truth))
    near = first.sparse_distance_matrix(second, distance, output_type="coo_matrix")
    return csr_matrix((np.ones(near.nnz, np.int32), (near.row, near.col)), shape=near.shape)


def _match(pairs: csr_matrix) -> int:
    """Count the pairs of a largest one-to-one matching, as a flow with capacities of 1.

    SciPy's ``maximum_bipartite_matching`` takes minutes for some of these graphs.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_flow

    rows, columns = pairs.shape
    if not pairs.nnz:
        return 0
    pairs = pairs.tocoo()
    source, sink = rows + columns, rows + columns + 1
    start = np.concatenate([np.full(rows, source), pairs.row, rows + np.arange(columns)])
    end = np.concatenate([np.arange(rows), rows + pairs.col, np.full(columns, sink)])
    graph = csr_matrix((np.ones(len(start), np.int32), (start, end)), shape=(sink + 1, sink + 1))
    return maximum_flow(graph, source, sink, method="dinic").flow_value


def ods_f(total: np.ndarray) -> float:
    """Compute the F-measure of a set at its best threshold.

    With precision ``P`` and recall ``R``, ::

        F = 2 * P * R / (P + R) = 2 * M / (N_pred + N_true)

    where ``M`` pixels are matched, ``P`` is ``M / N_pred`` and ``R`` is ``M / N_true``.

    Args:
        total: vectors of :func:`boundary_counts`, added up.

    Returns:
        odsF in [0, 1].
    """
    (matched, predicted), true = total[:-1].reshape(2, -1), total[-1]
    return float((2 * matched / np.maximum(predicted + true, 1)).max())

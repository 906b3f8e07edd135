"""The F-measure of boundaries of a whole set, computed by several processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mmlocal.evaluation.boundaries import (
    THRESHOLDS,
    boundary_counts,
    boundary_map,
    ods_f,
    quantize,
    thin,
)
from mmlocal.processes import map_in_processes, usable_cores
from mmlocal.tasks import IGNORE

# Below this number of images, a process would take longer to start than to do its work.
_LEAST_IMAGES = 4


@dataclass(frozen=True)
class PackedBoundaries:
    """Boundaries of one image as PNG files in memory.

    Args:
        edges: the prediction, 8 bit.
        truth: the thinned ground truth, 0 or 255.
    """

    edges: np.ndarray
    truth: np.ndarray


class BoundaryF:
    """odsF: F-measure of boundaries at the best of 101 thresholds for the whole set.

    :mod:`mmlocal.evaluation.boundaries` describes the protocol. Predictions are probabilities and
    labels are 0 or 1, ``(1, H, W)``. The ground truth is thinned. Where the label is 255, the
    prediction counts as 0.

    Args:
        max_dist: largest distance of matched pixels, as a fraction of the image's diagonal. The
            published figures have 0.011 for NYUD-v2 and 0.0075 for PASCAL-Context.
        boundary_map: whether to take the boundary map of the label before thinning, as SEISM does
            with the boundary images of NYUD-v2. It moves lines by half a pixel. The label of
            PASCAL-Context needs none, because it is a boundary map already.
        nms: whether to keep only the ridges of the prediction. The reader of MTI-Net does not.
        subset: a text file with the identifier of an image in each line. Other images are left out.
            SEISM's list ``test_new`` for PASCAL-Context has 2,498 of the 5,105 images of the
            validation set, and the published figures are for them. ``None`` for all images.
        num_workers: number of processes on this computer for each process of the evaluation; 0 for
            none beside it; ``None`` for one for each core.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: ``max_dist`` is not in (0, 1), ``num_workers`` is negative, or ``subset`` cannot
            be read or is empty.
    """

    def __init__(
        self,
        max_dist: float,
        boundary_map: bool = False,
        nms: bool = True,
        subset: str | Path | None = None,
        num_workers: int | None = None,
    ) -> None:
        _require_scipy()
        if not 0 < max_dist < 1:
            raise ValueError(f"edge: max_dist must be a fraction of the diagonal, got {max_dist}")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"edge: num_workers must be 0 or more, got {num_workers}")
        self.max_dist = max_dist
        self.boundary_map = boundary_map
        self.nms = nms
        self.subset = None if subset is None else _read_subset(Path(subset))
        self.num_workers = usable_cores() if num_workers is None else num_workers

    def pack(self, pred: Tensor, label: Tensor, image: str) -> PackedBoundaries | None:
        """Reduce the maps of one image to 8 bit.

        Args:
            pred: ``(1, H, W)``, probabilities.
            label: ``(1, H, W)``; 0, 1, or 255 to ignore.
            image: identifier of the image.

        Returns:
            The maps, or ``None`` if the subset leaves the image out.

        Raises:
            ValueError: the label has other values.
        """
        if self.subset is not None and image not in self.subset:
            return None
        edges, target = quantize(pred[0].float().cpu().numpy()), label[0].cpu().numpy()
        if not np.isin(target, (0, 1, IGNORE)).all():
            raise ValueError(f"the label must hold 0, 1 and {IGNORE} (ignored) only")
        edges[target == IGNORE] = 0
        truth = boundary_map(target == 1) if self.boundary_map else target == 1
        return PackedBoundaries(_encode(edges), _encode(thin(truth).astype(np.uint8) * 255))

    def counts(self, images: Sequence[PackedBoundaries | None]) -> list[np.ndarray]:
        """Match the boundaries of all images, and show the progress.

        Args:
            images: the images by :meth:`pack`.

        Returns:
            For each image a vector of :func:`mmlocal.evaluation.boundaries.boundary_counts`,
            followed by 1; zeros for ``None``.

        Note:
            Several processes work as by :func:`mmlocal.processes.map_in_processes`. A script that
            evaluates at import needs ``if __name__ == "__main__":``.
        """
        chosen = [image for image in images if image is not None]
        count = partial(_count, max_dist=self.max_dist, nms=self.nms)
        workers = min(self.num_workers, len(chosen) // _LEAST_IMAGES)
        done = track(
            map_in_processes(count, chosen, workers),
            "odsF",
            total=len(chosen),
            console=Console(stderr=True),
            disable=not is_main_process(),
        )
        counted = iter(list(done))
        nothing = np.zeros(2 * len(THRESHOLDS) + 2)
        return [nothing if image is None else next(counted) for image in images]

    def value(self, total: np.ndarray) -> float:
        """Compute odsF.

        Args:
            total: vectors of :meth:`counts`, added up.

        Returns:
            odsF in [0, 1]; NaN if there is no image.
        """
        images = int(total[-1])
        if self.subset is not None and images != len(self.subset):
            print_log(
                f"edge: subset names {len(self.subset)} images, and {images} of them were "
                "evaluated; published figures need all of them",
                logger="current",
                level=logging.WARNING,
            )
        return ods_f(total[:-1]) if images else math.nan


def _count(image: PackedBoundaries, max_dist: float, nms: bool) -> np.ndarray:
    counts = boundary_counts(_decode(image.edges), _decode(image.truth) > 0, max_dist, nms)
    return np.append(counts, 1.0)


def _encode(image: np.ndarray) -> np.ndarray:
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]


def _decode(png: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.imdecode(png, cv2.IMREAD_GRAYSCALE))


def _read_subset(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"edge: subset must be a text file with an identifier in each line ({error})"
        ) from error
    names = frozenset(line.strip() for line in lines) - {""}
    if not names:
        raise ValueError(f"edge: subset {path} names no image")
    return names


def _require_scipy() -> None:
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise ImportError(f"odsF needs SciPy ({error}): pip install scipy") from error

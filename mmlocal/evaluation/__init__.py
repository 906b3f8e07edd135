"""Metrics. Importing this package needs MMEngine and no library of a task."""

from mmlocal.evaluation.reconstruction import ReconstructionMetric, image_quality

__all__ = ["ReconstructionMetric", "image_quality"]

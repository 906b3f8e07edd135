"""Metrics. Importing this package needs MMEngine and no other OpenMMLab library."""

from mmlocal.evaluation.reconstruction import ReconstructionMetric, image_quality

__all__ = ["ReconstructionMetric", "image_quality"]

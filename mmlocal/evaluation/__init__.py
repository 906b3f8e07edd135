"""Metrics. Importing this package needs MMEngine and no other OpenMMLab library."""

from mmlocal.evaluation.multitask import MultiTaskMetric
from mmlocal.evaluation.reconstruction import ReconstructionMetric, image_quality

__all__ = ["MultiTaskMetric", "ReconstructionMetric", "image_quality"]

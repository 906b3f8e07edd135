"""Classifiers and parts of them. They need mmpretrain.

Configs name a batch augmentation by its full path, because mmpretrain's registry of them has no
child registries.
"""

from mmlocal.models.classifiers.batch_augments import MixAndErase
from mmlocal.models.classifiers.token_label import TokenLabelClassifier

__all__ = ["MixAndErase", "TokenLabelClassifier"]

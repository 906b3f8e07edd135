"""Parts of classifiers. They need mmpretrain, and configs name them by their full path."""

from mmlocal.models.classifiers.batch_augments import MixAndErase

__all__ = ["MixAndErase"]

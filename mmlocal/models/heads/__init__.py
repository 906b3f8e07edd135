"""Heads of classifiers. They need mmpretrain."""

from mmlocal.models.heads.token_label import TokenLabelHead

__all__ = ["TokenLabelHead"]

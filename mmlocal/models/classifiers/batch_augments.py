"""Augmentation of whole batches, after their normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmpretrain.models import RandomBatchAugment
from torch import Tensor
from torchvision.transforms import RandomErasing


class MixAndErase(RandomBatchAugment):
    """Mix a batch, then erase a rectangle of each image with some probability.

    mmpretrain's own ``RandomErasing`` is a step of the pipeline. It comes before mixing, and clips
    its noise to 0 to 255. timm, which trained ELSA, erases after mixing, and draws each value in a
    rectangle from N(0, 1) in the scale of normalized images. This class does the same::

        model = dict(
            train_cfg=dict(
                augments=dict(
                    type="mmlocal.models.classifiers.MixAndErase",
                    augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)],
                    erasing=dict(p=0.25, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3)),
                )
            )
        )

    Args:
        augments: mixing augmentations of mmpretrain's ``RandomBatchAugment``. One of them, drawn at
            random, mixes a batch. ``None`` in the sequence stands for no mixing, and is the
            default.
        probs: probabilities of the augmentations, as ``RandomBatchAugment`` takes them.
        erasing: arguments of torchvision's ``RandomErasing``, except ``value``.
        erase_first: whether to erase before mixing.
    """

    def __init__(
        self,
        augments: Callable | dict | Sequence[Callable | dict | None] = (None,),
        probs: float | list[float] | None = None,
        erasing: dict | None = None,
        erase_first: bool = False,
    ) -> None:
        super().__init__(augments, probs)
        self.erasing = RandomErasing(value="random", **(erasing or {}))
        self.erase_first = erase_first

    def __call__(self, batch_input: Tensor, batch_score: Tensor) -> tuple[Tensor, Tensor]:
        """Mix and erase.

        Args:
            batch_input: ``(B, C, H, W)`` normalized images.
            batch_score: ``(B, num_classes)`` scores of their classes.

        Returns:
            Images and scores of the same shapes.
        """
        if self.erase_first:
            batch_input = self._erase(batch_input)
        batch_input, batch_score = super().__call__(batch_input, batch_score)
        if not self.erase_first:
            batch_input = self._erase(batch_input)
        return batch_input, batch_score

    def _erase(self, batch_input: Tensor) -> Tensor:
        return torch.stack([self.erasing(image) for image in batch_input])

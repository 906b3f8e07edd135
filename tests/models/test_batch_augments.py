"""Mixing and erasing of batches."""

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("mmpretrain")

from mmlocal.models.classifiers import MixAndErase


def halve(images: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """A mixing whose result differs from erasing."""
    return images / 2, scores / 2


@pytest.mark.parametrize("erase_first", [False, True])
def test_order(erase_first):
    torch.manual_seed(0)
    augment = MixAndErase(halve, erasing=dict(p=1.0, scale=(0.2, 0.4)), erase_first=erase_first)
    images, scores = torch.full((16, 3, 64, 64), 8.0), torch.eye(16)
    mixed, mixed_scores = augment(images, scores)
    assert torch.equal(mixed_scores, scores / 2)
    assert torch.equal(images, torch.full_like(images, 8.0))
    erased = mixed != 4
    share = erased.flatten(1).float().mean(1)
    assert share.min() > 0.15
    assert share.max() < 0.45
    assert torch.equal(erased.all(1), erased.any(1))  # the same rectangle in all channels
    assert len(share.unique()) > 8  # another one in each image
    assert abs(mixed[erased].std() - (0.5 if erase_first else 1)) < 0.02


def test_without_mixing():
    torch.manual_seed(0)
    images, scores = torch.full((4, 3, 16, 16), 8.0), torch.eye(4)
    erased, same = MixAndErase(erasing=dict(p=1.0, scale=(0.2, 0.4)))(images, scores)
    assert torch.equal(same, scores)
    assert 0.5 < (erased == 8).float().mean() < 0.9


def test_probability():
    torch.manual_seed(0)
    images = torch.full((400, 1, 8, 8), 8.0)
    mixed, _ = MixAndErase(halve, erasing=dict(p=0.25, scale=(0.2, 0.4)))(
        images, torch.ones(400, 2)
    )
    share = (mixed != 4).flatten(1).any(1).float().mean()
    assert abs(share - 0.25) < 0.06


def test_one_of_the_augments_is_drawn():
    np.random.seed(0)  # noqa: NPY002 - mmpretrain draws from this one
    augment = MixAndErase([halve, lambda x, s: (2 * x, s)], probs=[0.5, 0.25], erasing=dict(p=0.0))
    drawn = [augment(torch.ones(1, 1, 2, 2), torch.ones(1, 2))[0].mean().item() for _ in range(60)]
    assert {0.5, 1.0, 2.0} == set(drawn)
    assert drawn.count(0.5) > drawn.count(2.0)

"""The random numbers of a run with ``IterSeedHook``."""

import random
from types import SimpleNamespace

import numpy as np
import torch

from mmlocal.engine.hooks import IterSeedHook


def draws(seed: int = 0, iteration: int = 0, rank: int = 0) -> list[tuple]:
    """What the three generators give for the data, and then for the forward pass."""
    runner = SimpleNamespace(seed=seed, iter=iteration, rank=rank)
    hook, drawn = IterSeedHook(), []
    for seeding in (hook.before_train_epoch, hook.before_train_iter):
        seeding(runner)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    return drawn


def test_a_function_of_seed_iteration_and_rank():
    assert draws() == draws()
    cases = [draws(), draws(seed=1), draws(iteration=1), draws(rank=1), draws(1, 1), draws(1, 1, 1)]
    numbers = [number for case in cases for draw in case for number in draw]
    assert len(set(numbers)) == len(numbers)


def test_data_of_an_iteration_is_the_same_after_a_resume():
    IterSeedHook().after_train_iter(SimpleNamespace(seed=0, iter=4, rank=0))
    going_on = torch.rand(1)
    for seeding in (IterSeedHook().before_train_epoch, IterSeedHook().after_val):
        seeding(SimpleNamespace(seed=0, iter=5, rank=0))
        assert torch.equal(torch.rand(1), going_on)

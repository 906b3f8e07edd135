"""Hooks of the runs that the configs describe."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmlocal.registry import HOOKS


@HOOKS.register_module()
class IterSeedHook(Hook):
    """Make randomness a function of seed and iteration, so that a resumed run is exact.

    MMEngine restores the order of the samples, but not the state of the random generators. Here
    the generators of Python, NumPy and PyTorch are seeded from ``(runner.seed, iteration, rank)``
    before every iteration and again before the data of the next one is loaded. Nothing has to be
    saved. With the rank in it, processes do not all drop the same paths or mix by the same ratio.
    A run with a given ``randomness.seed`` that is resumed from any of its checkpoints then repeats
    the uninterrupted run bit for bit, as far as its ops are deterministic.

    Note:
        Worker processes of a data loader keep generators of their own, which start anew with the
        process. Runs by epoch are exact if workers start with each epoch
        (``persistent_workers=False``, as in the configs on the generated shapes, or
        ``--no-persistent-workers`` for all runs that are compared), runs by iteration if there
        are none (``num_workers=0``). MMEngine seeds workers alike at each start.
    """

    # After all other hooks, which may draw random numbers themselves.
    priority = "LOWEST"

    def before_train_epoch(self, runner: Runner) -> None:
        """Before the first data of an epoch, or of a run by iteration."""
        _seed(runner, runner.iter, 0)

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Before the forward pass."""
        _seed(runner, runner.iter, 1)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Before the next data; ``runner.iter`` goes up after the hooks."""
        _seed(runner, runner.iter + 1, 0)

    def after_val(self, runner: Runner) -> None:
        """As after the last training iteration: a resumed run does not repeat the validation."""
        _seed(runner, runner.iter, 0)


def _seed(runner: Runner, iteration: int, part: int) -> None:
    key = (runner.seed, iteration, part, runner.rank)
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)  # noqa: NPY002 - the transforms of the libraries draw from this one
    torch.manual_seed(int(words[:2].view(np.uint64)[0] >> 1))

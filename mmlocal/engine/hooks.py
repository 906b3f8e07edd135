"""A hook for reproducible runs."""

import random
import sys
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, get_worker_info

from mmlocal.registry import HOOKS


@HOOKS.register_module()
class IterSeedHook(Hook):
    """Make randomness a function of seed, iteration and rank, so that resuming a run is exact.

    MMEngine restores the order of the samples, but not the state of the random generators. It also
    gives the workers of a data loader the same seeds at each start. So workers that start with each
    epoch repeat the same augmentation.

    This hook seeds the generators of Python, NumPy and PyTorch from
    ``(runner.seed, iteration, rank)`` twice in each iteration. The first time is before the batch
    is loaded, in the process that loads it. The second time is before the forward pass. Nothing has
    to be saved. The hook works by epoch and by iteration, with any number of workers, persistent or
    not:

    * Each batch of a run is augmented by other random numbers. Each process of a distributed run
      drops other paths and mixes by another ratio.
    * Give a run a ``randomness.seed``, and resume it from any of its checkpoints. It repeats the
      uninterrupted run bit for bit, as far as its ops are deterministic. The number of workers may
      change.

    Note:
        Three kinds of runs are not exact after they are resumed:

        * A run by epoch, from a checkpoint within an epoch. MMEngine starts this epoch anew.
        * A run by iteration, with workers and a sampler that ends, such as ``DefaultSampler``. Use
          ``InfiniteSampler``.
        * A run by iteration, with workers, in OpenMMLab's own MMEngine. It starts the workers
          before it calls any hook.
    """

    # Other hooks may draw random numbers, so this hook comes last.
    priority = "LOWEST"

    def __init__(self) -> None:
        self._workers: _SeededWorkers | None = None

    def before_train(self, runner: Runner) -> None:
        """Prepare the data loader before its first workers start."""
        loader = runner.train_dataloader
        if not isinstance(loader, DataLoader):
            return
        # Each start of a loader draws a number, and a resumed run has more starts. Without its own
        # generator, the loader would draw from PyTorch's.
        loader.generator = loader.generator or torch.Generator()
        if loader.num_workers:
            by_epoch = not isinstance(runner.train_loop, IterBasedTrainLoop)
            self._workers = _SeededWorkers(loader, by_epoch, runner.seed, runner.rank)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed before the first batch of an epoch, or of a run by iteration."""
        self._seed_data(runner, runner.iter)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Seed before the forward pass."""
        _seed(runner.seed, runner.iter, 1, runner.rank)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Seed before the next batch. ``runner.iter`` increases only after the hooks."""
        self._seed_data(runner, runner.iter + 1)

    def after_val(self, runner: Runner) -> None:
        """Seed as if there were no validation, because a resumed run does not repeat it."""
        self._seed_data(runner, runner.iter)

    def _seed_data(self, runner: Runner, iteration: int) -> None:
        _seed(runner.seed, iteration, 0, runner.rank)
        if self._workers is not None:
            self._workers.iteration = iteration


class _SeededWorkers:
    """Seeds the workers of a data loader before each of their batches.

    A loader hands out batches to its workers in turn, so each worker can count the batches. Each
    worker gets its own copy of this object when it starts.
    """

    def __init__(self, loader: DataLoader, by_epoch: bool, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank
        self.iteration = 0  # of the next batch
        # Workers that outlive an epoch start with the first batches of the next one.
        self.batches = len(loader) if by_epoch and loader.persistent_workers else sys.maxsize
        self.batch = 0
        self._init_fn, self._collate_fn = loader.worker_init_fn, loader.collate_fn
        loader.worker_init_fn, loader.collate_fn = self.start, self.collate

    def start(self, worker_id: int) -> None:
        if self._init_fn is not None:
            self._init_fn(worker_id)
        self.batch = worker_id
        self._seed_batch()

    def collate(self, samples: list) -> object:
        batch = self._collate_fn(samples)
        worker = get_worker_info()
        assert worker is not None, "only workers collate with this"
        self.batch += worker.num_workers
        if self.batch >= self.batches:
            self.batch = worker.id
            self.iteration += self.batches
        self._seed_batch()
        return batch

    def _seed_batch(self) -> None:
        _seed(self.seed, self.iteration + self.batch, 0, self.rank)


def _seed(seed: int, iteration: int, part: int, rank: int) -> None:
    words = np.random.SeedSequence((seed, iteration, part, rank)).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)  # noqa: NPY002 - the transforms of the libraries draw from this one
    torch.manual_seed(int(words[:2].view(np.uint64)[0] >> 1))

"""The random numbers of a run with ``IterSeedHook``."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmlocal.engine.hooks import IterSeedHook


def draw() -> tuple[float, float, float]:
    """Draw a number from each generator."""
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def draws(seed: int = 0, iteration: int = 0, rank: int = 0) -> list[tuple]:
    """Numbers of the three generators, for the data and then for the forward pass."""
    runner = SimpleNamespace(seed=seed, iter=iteration, rank=rank)
    hook, drawn = IterSeedHook(), []
    for seeding in (hook.before_train_epoch, hook.before_train_iter):
        seeding(runner)
        drawn.append(draw())
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


class RandomData(torch.utils.data.Dataset):
    """Samples that hold their index and a number of each generator."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[int, tuple]:
        return index, draw()


class Model(BaseModel):
    """A model to train."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, *data, mode: str) -> dict:
        return dict(loss=self.weight.sum())


class Record(Hook):
    """A hook that keeps the batches."""

    def __init__(self) -> None:
        self.batches = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        indices, (python, numpy, pytorch) = data_batch
        self.batches.append(list(zip(indices, python, numpy, pytorch, strict=True)))


class OtherRank(Runner):
    """A hook with the rank of the second process of a distributed run."""

    rank = 1


BY_EPOCH = dict(by_epoch=True, max_epochs=3)
BY_ITERATION = dict(by_epoch=False, max_iters=12)
STEPS = 4  # of an epoch: batches of 3, 3, 3 and 1


def run(work_dir: Path, train_cfg: dict, kind=Runner, resume: str | None = None, **loader) -> list:
    """Train, and return the batches."""
    by_epoch = train_cfg["by_epoch"]
    sampler = "DefaultSampler" if by_epoch else "InfiniteSampler"
    record = Record()
    runner = kind(
        Model(),
        str(work_dir),
        train_dataloader=dict(
            dataset=RandomData(), batch_size=3, sampler=dict(type=sampler, shuffle=True), **loader
        ),
        train_cfg=dict(train_cfg),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", interval=1, by_epoch=by_epoch),
            logger=dict(type="LoggerHook", interval=100),
        ),
        custom_hooks=[dict(type="mmlocal.IterSeedHook"), record],
        randomness=dict(seed=0),
        load_from=resume,
        resume=resume is not None,
        log_level="ERROR",
        experiment_name=f"{work_dir.name}_{len(list(work_dir.glob('*')))}_{kind.__name__}",
    )
    runner.train()
    return record.batches


LOADERS = [
    dict(num_workers=1),
    dict(num_workers=2),
    dict(num_workers=2, persistent_workers=True),
]


@pytest.fixture(scope="module", params=[BY_EPOCH, BY_ITERATION], ids=["by_epoch", "by_iteration"])
def whole(request, tmp_path_factory):
    """An uninterrupted run without workers: its folder, kind and batches."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, request.param, run(folder, request.param, num_workers=0)


def test_no_two_samples_get_the_same_numbers(whole):
    batches = whole[2]
    assert len(batches) == 12
    numbers = [number for batch in batches for sample in batch for number in sample[1:]]
    assert len(set(numbers)) == len(numbers) > 3 * 30 - 1


@pytest.mark.parametrize("loader", LOADERS, ids=str)
def test_workers_do_not_matter(whole, loader, tmp_path):
    assert run(tmp_path, whole[1], **loader) == whole[2]


def test_workers_that_do_not_inherit(tmp_path):
    spawned = dict(num_workers=2, persistent_workers=True, multiprocessing_context="spawn")
    assert run(tmp_path / "a", BY_EPOCH, **spawned) == run(tmp_path / "b", BY_EPOCH, num_workers=0)


@pytest.mark.parametrize("loader", [dict(num_workers=0), *LOADERS], ids=str)
def test_a_resumed_run_is_exact(whole, loader, tmp_path):
    folder, train_cfg, batches = whole
    checkpoint = folder / ("epoch_1.pth" if train_cfg["by_epoch"] else f"iter_{STEPS}.pth")
    resumed = run(tmp_path, train_cfg, resume=str(checkpoint), **loader)
    assert resumed == batches[STEPS:]


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_differ(whole, workers, tmp_path):
    batches = run(tmp_path, whole[1], OtherRank, num_workers=workers)
    ours, theirs = (
        {number for batch in run for sample in batch for number in sample[1:]}
        for run in (batches, whole[2])
    )
    assert len(ours) == len(theirs)
    assert not ours & theirs

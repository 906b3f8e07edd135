"""The hook that writes how far a run is."""

import json

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

BATCHES, EPOCHS = 5, 2


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, *inputs, mode="tensor"):
        return {"loss": self.weight * 2} if mode == "loss" else [None] * len(inputs)


class Metric(BaseMetric):
    def process(self, batch, outputs):
        self.results += outputs

    def compute_metrics(self, results):
        return {"number": len(results)}


@pytest.fixture
def states(tmp_path, monkeypatch) -> list[dict]:
    """All that the hook writes."""
    found = []

    def write(path, content):
        assert path == tmp_path / "state.json"
        found.append(json.loads(content))

    monkeypatch.setattr("mmlocal.engine.progress.write_whole", write)
    return found


def loader() -> dict:
    sampler = dict(type=DefaultSampler, shuffle=False)
    return dict(batch_size=2, dataset=list(range(2 * BATCHES)), sampler=sampler)


def runner(tmp_path, by_epoch: bool, **settings) -> Runner:
    length = dict(max_epochs=EPOCHS) if by_epoch else dict(max_iters=EPOCHS * BATCHES)
    return Runner(
        model=Model(),
        work_dir=str(tmp_path / "run"),
        experiment_name=f"progress{by_epoch}{settings}",
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=by_epoch, val_interval=BATCHES, **length),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        val_dataloader=loader(),
        val_cfg=dict(),
        val_evaluator=[Metric()],
        test_dataloader=loader(),
        test_cfg=dict(),
        test_evaluator=[Metric()],
        default_hooks=dict(
            progress=dict(
                type="mmlocal.ProgressHook", path=str(tmp_path / "state.json"), **settings
            )
        ),
        default_scope="mmengine",
    )


@pytest.mark.parametrize("by_epoch", [True, False])
def test_training_and_test(by_epoch, tmp_path, states):
    run = runner(tmp_path, by_epoch, interval=0.0)
    run.train()
    training = [state for state in states if state["phase"] == "train"]
    assert [state["done"] for state in training] == list(range(1, 11))
    assert {state["total"] for state in training} == {10}
    epochs = [1] * 5 + [2] * 5 if by_epoch else [0] * 10
    assert [state["epoch"] for state in training] == epochs
    assert {state["epochs"] for state in training} == {EPOCHS if by_epoch else 0}
    losses = [state["loss"] for state in training]
    assert losses[0] == 2
    assert losses == sorted(losses, reverse=True)
    assert training[-1]["seconds_left"] == 0 < training[0]["seconds_left"]
    if not by_epoch:
        validation = [state for state in states if state["phase"] == "val"]
        assert [state["done"] for state in validation] == [2, 4, 6, 8, 10] * 2
        assert validation[0]["loss"] == losses[4]

    states.clear()
    run.test()
    assert [(state["phase"], state["done"]) for state in states] == [
        ("test", 2 * batch + 2) for batch in range(BATCHES)
    ]
    assert "loss" not in states[0]


def test_writes_now_and_then(tmp_path, states):
    """The last state of each phase is written in any case."""
    runner(tmp_path, True, interval=600.0).train()
    assert states[-1]["phase"] == "val"
    assert [state["done"] for state in states if state["phase"] == "train"][-1] == 10
    assert len(states) < 8

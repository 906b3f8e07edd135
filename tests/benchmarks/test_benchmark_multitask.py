"""The benchmark of attention among tasks."""

import json

import pytest
import torch
from tool_scripts import TIMES, run_tool
from torch import nn

from benchmarks import multitask
from mmlocal.errors import UsageError
from mmlocal.layers import DeformableAttention, InterTaskAttention

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=(0, 8)), "size: must be at least 1, got 0"),
        (dict(tasks=0), "tasks: must be at least 1, got 0"),
        (dict(batch_size=-1), "batch_size: must be at least 1, got -1"),
        (dict(rounds=0), "rounds: must be at least 1, got 0"),
        (dict(image_size=(32, -32)), "image_size: must be at least 0, got -32"),
    ],
)
def test_bad_options(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        multitask.benchmark_multitask(tmp_path, device="cpu", **options)


def test_steps(tmp_path):
    pytest.importorskip("mmseg")
    pytest.importorskip("mmcv.ops")
    arguments = ["--size", "6", "5", "--image-size", "0", "0", "--tasks", "2", "--rounds", "1"]
    printed = run_tool("benchmark_multitask.py", *arguments, "--device", "cpu", "--out", tmp_path)
    result = json.loads((tmp_path / "multitask_cpu.json").read_text())
    assert result.keys() == {"hardware", "versions", "date", "settings", "results"}
    assert result["settings"] == dict(
        size=[6, 5], image_size=[0, 0], tasks=2, batch_size=1, rounds=1
    )
    assert [row["contestant"] for row in result["results"]] == list(multitask.STEPS)
    for row in result["results"]:
        assert row.keys() == TIMES | {"contestant", "mode", "size", "peak_bytes"}
    header, _, first, *_ = printed.splitlines()
    assert header.split("|")[1].strip() == "step, inference"
    assert [cell.strip() for cell in first.split("|")[1:4:2]] == ["itsa", "1.00"]


class Tiny(nn.Module):
    """A network of one parameter, which MMEngine trains."""

    def __init__(self, tasks):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.decode_head = nn.Module()
        self.decode_head.tasks = tasks

    def forward(self, image, samples, mode):
        assert mode == "loss"
        for task in self.decode_head.tasks:
            assert all(sample.get(task.gt_field).shape == image.shape[2:] for sample in samples)
        return dict(loss=self.weight * image.sum())

    def parse_losses(self, losses):
        return losses["loss"], losses


def test_networks(tmp_path, monkeypatch):
    """Networks stand in a table of their own, and one that cannot run says why."""
    pytest.importorskip("mmseg")
    from mmlocal.tasks import find_tasks

    def build(name):
        if name.endswith("+mmcv"):
            raise ImportError("mmcv has no ops\nhere")
        return Tiny(find_tasks(["semseg", "normals"]))

    monkeypatch.setattr(multitask, "_network", build)
    monkeypatch.setattr(multitask, "STEPS", {"itsa": "one step of ITSA"})
    result = multitask.benchmark_multitask(
        tmp_path, size=(2, 2), image_size=(8, 12), tasks=1, rounds=1, device="cpu"
    )
    rows = [row for row in result["results"] if row["mode"] == "network, training"]
    assert [row["contestant"] for row in rows] == list(multitask.NETWORKS)
    assert [row.get("skipped") for row in rows] == [None, "mmcv has no ops", None, None]
    tables = multitask.format_multitask(result).split("\n\n")
    assert len(tables) == 2
    assert f"{multitask.NETWORKS[1]}: mmcv has no ops" in tables[1]


def test_contestant_without_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(multitask, "available_memory", lambda: 2**30)
    rows = multitask._measure({"big": pytest.fail}, {"big": 3 * 2**30}, CPU, 1, {})
    assert rows == [dict(contestant="big", skipped="needs about 3 GiB, 1 are free")]
    table = multitask.format_multitask(dict(results=[dict(row, mode="step") for row in rows]))
    assert "big: needs about 3 GiB, 1 are free" in table


def test_mmcv_computes_the_same():
    """With zeros outside the maps, and the same weights."""
    pytest.importorskip("mmcv.ops")
    torch.manual_seed(0)
    step = InterTaskAttention(8, 2, num_levels=2, num_heads=2, num_points=2, padding_mode="zeros")
    nn.init.normal_(step.attention.attention_weights.weight)
    step.eval()
    x = torch.randn(2, 2, 5, 6, 8)
    with torch.no_grad():
        expected = step(x)
        assert multitask.with_mmcv(step) is step
        assert not any(isinstance(layer, DeformableAttention) for layer in step.modules())
        torch.testing.assert_close(step(x), expected, rtol=0, atol=1e-5)

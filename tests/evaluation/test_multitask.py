"""The metrics of all tasks: batches, processes, names and mistakes."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmengine.structures import BaseDataElement, PixelData

from mmlocal.evaluation.boundary_metric import BoundaryF
from mmlocal.tasks import find_tasks

ROOT = Path(__file__).parents[2]
TASKS = ("semseg", "human_parts", "sal", "depth", "normals")
CONFIG = dict(
    type="mmlocal.MultiTaskMetric", tasks=TASKS, num_classes=dict(semseg=4, human_parts=7)
)
KEYS = ["semseg/mIoU", "human_parts/mIoU", "sal/maxF", "depth/RMSE", "normals/mErr"]


def make_sample(seed: int, height: int = 8, width: int = 9) -> BaseDataElement:
    """Make random maps of all tasks but ``edge``."""
    rng = torch.Generator().manual_seed(seed)
    shape = (1, height, width)

    def classes(num: int) -> torch.Tensor:
        return torch.randint(num, shape, generator=rng)

    def values(channels: int = 1) -> torch.Tensor:
        return torch.rand(channels, height, width, generator=rng)

    maps = dict(
        gt_sem_seg=classes(4),
        pred_sem_seg=classes(4),
        gt_parts_map=classes(7) if seed else torch.full(shape, 255),
        pred_parts_map=classes(7),
        gt_saliency_map=classes(2),
        pred_saliency_map=values(),
        gt_depth_map=1 + values(),
        pred_depth_map=1 + values(),
        gt_normal_map=values(3),
        pred_normal_map=values(3),
    )
    maps["gt_sem_seg"][0, 0] = 255
    sample = BaseDataElement(metainfo=dict(sample_id=f"image{seed}"))
    for name, data in maps.items():
        sample.set_field(PixelData(data=data), name)
    return sample


def evaluate(samples: list[BaseDataElement], batch_size: int, **changes) -> dict[str, float]:
    evaluator = Evaluator(CONFIG | changes)
    for start in range(0, len(samples), batch_size):
        evaluator.process(samples[start : start + batch_size])
    return evaluator.evaluate(len(samples))


def test_value_of_the_set():
    """One image of all pixels has the value of the set, whatever the batches."""
    samples = [make_sample(seed) for seed in range(5)]
    found = evaluate(samples, 1)
    assert list(found) == KEYS
    assert evaluate(samples, 2) == found
    whole = BaseDataElement()
    for name in samples[0].keys():  # noqa: SIM118 (a data element is no dict)
        data = torch.cat([sample.get(name).data for sample in samples], 1)
        whole.set_field(PixelData(data=data), name)
    assert evaluate([whole], 1) == pytest.approx(found, rel=1e-12)
    assert min(found.values()) > 0


def test_perfect_predictions():
    sample = make_sample(1)
    for task in find_tasks(TASKS):
        sample.get(task.pred_field).data = sample.get(task.gt_field).data
    sample.pred_sem_seg.data = sample.gt_sem_seg.data.clamp(max=3)
    found = evaluate([sample], 1)
    assert found == pytest.approx(dict(zip(KEYS, (1, 1, 1, 0, 0), strict=True)), abs=1e-5)


PROCESS = """
import pickle, sys
import torch
from mmengine.dist import collect_results
from mmengine.evaluator import Evaluator
import mmlocal.evaluation

rank, folder = int(sys.argv[1]), sys.argv[2]
config, samples = pickle.load(open(f"{folder}/problem", "rb"))
store = torch.distributed.FileStore(f"{folder}/store", 2)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
evaluator = Evaluator(config)
evaluator.process(samples[rank::2] if rank == 0 else [*samples[1::2], samples[0]])
found = evaluator.evaluate(len(samples))
pickle.dump(found, open(f"{folder}/rank{rank}", "wb"))
# Gloo aborts a process that exits while the other one still talks to it.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """The second process has one image twice, as samplers pad sets; MMEngine drops it again."""
    pytest.importorskip("scipy")
    samples = [edge_sample(seed) for seed in range(5)]
    changes = dict(tasks=(*TASKS, "edge"), edge=dict(max_dist=0.02, num_workers=0))
    config = CONFIG | changes | dict(collect_device="cpu")
    (tmp_path / "problem").write_bytes(pickle.dumps((config, samples)))
    commands = [[sys.executable, "-c", PROCESS, str(rank), str(tmp_path)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    found = [pickle.loads((tmp_path / f"rank{rank}").read_bytes()) for rank in (0, 1)]
    assert found[0] == found[1] == pytest.approx(evaluate(samples, 1, **changes), rel=1e-12)


def edge_sample(seed: int) -> BaseDataElement:
    """Add a circle, and a noisy prediction of it."""
    sample = make_sample(seed, 40, 50)
    y, x = np.mgrid[:40, :50]
    circle = torch.from_numpy(np.abs(np.hypot(y - 20, x - 25) - 8 - seed) < 1)[None]
    noise = torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(seed))
    sample.gt_edge_map = PixelData(data=circle.long())
    sample.pred_edge_map = PixelData(data=0.6 * circle + 0.4 * noise)
    return sample


def test_edges(tmp_path):
    pytest.importorskip("scipy")
    samples = [edge_sample(seed) for seed in range(3)]
    changes = dict(tasks=(*TASKS, "edge"), edge=dict(max_dist=0.02, num_workers=0))
    found = evaluate(samples, 2, **changes)
    assert list(found) == [*KEYS, "edge/odsF"]
    metric = BoundaryF(0.02, num_workers=0)
    maps = [(s.pred_edge_map.data, s.gt_edge_map.data) for s in samples]
    counts = metric.counts([metric.pack(*pair, "") for pair in maps])
    assert found["edge/odsF"] == metric.value(sum(counts)) > 0.5
    assert evaluate(samples, 1, **changes, baseline=found)["delta"] == 0
    # odsF can be left out, as during training
    assert list(evaluate(samples, 1, tasks=(*TASKS, "edge"))) == KEYS

    (tmp_path / "list.txt").write_text("image1")
    changes["edge"]["subset"] = tmp_path / "list.txt"
    assert evaluate(samples, 2, **changes)["edge/odsF"] == metric.value(counts[1])


def test_statistics_are_small():
    metric = METRICS.build(CONFIG)
    metric.process({}, [make_sample(1, 200, 300).to_dict()])
    assert len(pickle.dumps(metric.results)) < 3000


def test_delta():
    samples = [make_sample(seed) for seed in range(3)]
    found = evaluate(samples, 1)
    assert evaluate(samples, 1, baseline=found)["delta"] == 0
    better = found | {"depth/RMSE": found["depth/RMSE"] * 2}
    assert evaluate(samples, 1, baseline=better)["delta"] == pytest.approx(10)


def test_a_task_without_labels(monkeypatch):
    """A set without any person."""
    messages = []
    log = lambda message, **kwargs: messages.append(message)  # noqa: E731
    monkeypatch.setattr("mmlocal.evaluation.multitask.print_log", log)
    found = evaluate([make_sample(0)], 1)
    assert [message.split(":")[0] for message in messages] == ["human_parts/mIoU is NaN"]
    assert np.isnan(found["human_parts/mIoU"])
    assert np.isfinite([found[key] for key in KEYS if key != "human_parts/mIoU"]).all()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("pred_depth_map", "depth of image3: there is no pred_depth_map; the model must predict"),
        ("gt_depth_map", "depth of image3: there is no gt_depth_map; the test pipeline must load"),
    ],
)
def test_missing_maps(field, message):
    sample = make_sample(3)
    sample.pop(field)
    with pytest.raises(ValueError, match=message):
        evaluate([sample], 1)


def test_maps_of_different_sizes():
    sample = make_sample(3)
    sample.pred_depth_map = make_sample(3, 9, 8).pred_depth_map
    with pytest.raises(ValueError, match=r"depth of image3: pred_depth_map is \(1, 9, 8\) and gt"):
        evaluate([sample], 1)


def test_wrong_classes():
    with pytest.raises(ValueError, match=r"semseg of image3: the label has classes from 0 to 3"):
        evaluate([make_sample(3)], 1, num_classes=dict(semseg=2, human_parts=7))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(num_classes=dict(semseg=4)), ValueError, "num_classes must have 'human_parts'"),
        (
            dict(num_classes=dict(semseg=4, human_parts=7, sal=2)),
            ValueError,
            "names sal, which",
        ),
        (dict(num_classes=40), TypeError, "num_classes must be a dict"),
        (dict(tasks=["semseg", "semseg"]), ValueError, "names 'semseg' 2 times"),
        (dict(baseline={"semseg/mIoU": 0.4}), ValueError, "no 'human_parts/mIoU'"),
        (dict(edge=dict(max_dist=0.011)), ValueError, "edge is given, but tasks has no 'edge'"),
        (dict(tasks=["depth", "edge"], num_classes=None, baseline={}), ValueError, "needs odsF"),
    ],
)
def test_wrong_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        METRICS.build(CONFIG | changes)


def test_empty_set():
    with pytest.raises(ValueError, match="no image was evaluated"):
        METRICS.build(CONFIG).evaluate(0)

"""The table of tasks, and that each task of it is known everywhere."""

import pytest
import torch

from mmlocal.tasks import TASKS

pytest.importorskip("mmseg.models")

from mmengine.registry import METRICS
from mmengine.structures import BaseDataElement, PixelData
from torch import nn

import mmlocal.registry  # noqa: F401 - the scope of the types
from mmlocal.models.multitask.outputs import build_loss, channels_of, decode
from mmlocal.visualization.multitask_maps import colour_map


def test_names_are_unique():
    for attribute in ("gt_key", "gt_field", "pred_field", "metric_key"):
        assert len({getattr(task, attribute) for task in TASKS.values()}) == len(TASKS)
    assert TASKS["semseg"].gt_key == "gt_seg_map"  # as in mmseg
    assert TASKS["semseg"].gt_field == "gt_sem_seg"
    assert TASKS["depth"].gt_key == TASKS["depth"].gt_field == "gt_depth_map"
    assert TASKS["depth"].metric_key == "depth/RMSE"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_each_task_has_a_loss_a_prediction_a_metric_and_colours(task):
    if task.metric == "odsF":
        pytest.importorskip("scipy")
    options = {} if task.channels else {"num_classes": 4}
    assert isinstance(build_loss(task, options), nn.Module)
    prediction = decode(task, torch.rand(channels_of(task, options), 20, 24))
    assert prediction.shape[1:] == (20, 24)
    assert colour_map(task.name, prediction.numpy()).shape == (20, 24, 3)
    metric = METRICS.build(
        dict(
            type="mmlocal.MultiTaskMetric",
            tasks=[task.name],
            num_classes={} if task.channels else {task.name: 4},
            edge=dict(max_dist=0.1, num_workers=0) if task.metric == "odsF" else None,
        )
    )
    sample = BaseDataElement()
    label = prediction if task.continuous else prediction.round().long()
    for field, data in ((task.pred_field, prediction), (task.gt_field, label)):
        sample.set_field(PixelData(data=data), field)
    metric.process({}, [sample.to_dict()])
    assert list(metric.evaluate(1)) == [task.metric_key]

"""The benchmark of training steps of Mask R-CNN."""

import json

import pytest
import torch
from torch import nn

from benchmarks import detection
from mmlocal.errors import UsageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=(320, 32)), "size: must be at least 64, got 32"),
        (dict(batch_size=0), "batch_size: must be at least 1, got 0"),
        (dict(rounds=0), "rounds: must be at least 1, got 0"),
    ],
)
def test_bad_options_of_detection(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        detection.benchmark_detection(tmp_path, device="cpu", **options)


class Tiny(nn.Module):
    """A detector of one parameter, which checks its inputs."""

    def __init__(self, with_cp):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64 if with_cp else 4096))

    def forward(self, image, samples, mode):
        assert mode == "loss"
        height, width = image.shape[2:]
        for sample in samples:
            boxes = sample.gt_instances.bboxes
            assert (boxes[:, :2] < boxes[:, 2:]).all()
            assert (boxes <= torch.tensor([width, height] * 2)).all()
            assert sample.gt_instances.masks.masks.shape == (len(boxes), height, width)
        return self.weight.sum() * image.mean()

    def parse_losses(self, losses):
        return losses, {}


def test_detection(tmp_path, monkeypatch):
    pytest.importorskip("mmdet")
    monkeypatch.setattr(detection, "build_detector", lambda backbone, with_cp: Tiny(with_cp))
    result = detection.benchmark_detection(tmp_path, (64, 96), rounds=1, device="cpu")
    assert json.loads((tmp_path / "detection_cpu.json").read_text()) == result
    names = [(row["backbone"], row["with_cp"]) for row in result["results"]]
    assert names == [(name, cp) for name in detection.BACKBONES for cp in (False, True)]
    # The gradient of the parameter.
    assert all(row["peak_bytes"] >= (256 if row["with_cp"] else 16384) for row in result["results"])
    lines = detection.format_detection(result).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "elsa_swin_tiny",
        "elsa_swin_tiny, with_cp",
        "swin_tiny",
        "swin_tiny, with_cp",
    ]


@pytest.mark.parametrize("name", detection.BACKBONES)
def test_both_detectors_compute_blocks_again(name):
    pytest.importorskip("mmdet")
    pytest.importorskip("mmcv.ops")
    model = detection.build_detector(name, with_cp=True)
    flags = [m.with_cp for m in model.backbone.modules() if hasattr(m, "with_cp")]
    assert flags
    assert all(flags)

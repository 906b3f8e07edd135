"""Measure training steps of Mask R-CNN: ELSA-Swin-T beside Swin-T, with and without ``with_cp``."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from benchmarks.report import environment, format_table, write_json
from mmlocal.analysis.measure import choose_device, peak_memory, summarise, time_interleaved
from mmlocal.errors import UsageError
from mmlocal.libraries import LIBRARIES
from mmlocal.paths import config_path
from mmlocal.registry import MODELS

CONFIG = "elsa_swin_t_maskrcnn_1x"
# Backbones in the config. Both have four stages of 96, 192, 384 and 768 channels.
BACKBONES = {
    "elsa_swin_tiny": dict(type="mmlocal.ELSASwin", arch="tiny", drop_path_rate=0.1),
    "swin_tiny": dict(type="mmdet.SwinTransformer", drop_path_rate=0.1),
}
_OBJECTS = 8


def build_detector(backbone: str, with_cp: bool) -> nn.Module:
    """Build the Mask R-CNN of ``CONFIG`` with random weights.

    Args:
        backbone: a name out of ``BACKBONES``.
        with_cp: whether the blocks of the backbone are computed again in the backward pass.
    """
    cfg = Config.fromfile(config_path(CONFIG))
    cfg.model.backbone = BACKBONES[backbone] | dict(with_cp=with_cp)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def training_step(model: nn.Module, size: tuple[int, int], batch: int) -> Callable[[], object]:
    """Make a training step of a detector on random images: forward pass, backward pass and SGD.

    Args:
        model: a detector of MMDetection with mask heads.
        size: height and width of the images in pixels.
        batch: number of images. Each has eight objects.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size
    device = next(model.parameters()).device
    image = torch.randn(batch, 3, height, width, device=device)
    samples = []
    for _ in range(batch):
        # Corners in one half and in the other half of the image.
        corners = torch.rand(_OBJECTS, 2, 2) / 2 + torch.tensor([0.0, 0.5])[:, None]
        boxes = (corners * torch.tensor([width, height])).flatten(1)
        masks = torch.ones(_OBJECTS, height, width, dtype=torch.uint8).numpy()
        sample = DetDataSample(
            metainfo=dict.fromkeys(("img_shape", "pad_shape", "batch_input_shape"), size)
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(device),
            labels=torch.arange(_OBJECTS, device=device),
            masks=BitmapMasks(masks, height, width),
        )
        samples.append(sample)
    # The rate is so low that the weights do not change from round to round.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)

    def step() -> None:
        losses = model(image, samples, mode="loss")
        total, _ = model.parse_losses(losses)
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def benchmark_detection(
    out: Path,
    size: Sequence[int] = (320, 480),
    batch_size: int = 1,
    rounds: int = 3,
    device: str | None = None,
) -> dict:
    """Measure time and memory of training steps of Mask R-CNN with each backbone.

    Weights and images are random. Writes ``out/detection_<device>.json``, first after the
    measurement of memory.

    Args:
        out: folder for the results.
        size: height and width of the images in pixels.
        batch_size: number of images.
        rounds: number of samples of each time, as for :func:`time_interleaved`.
        device: ``"cpu"`` or ``"cuda"``; ``None`` for the GPU if there is one.

    Returns:
        The contents of the JSON file: ``hardware``, ``versions``, ``date``, ``settings`` and
        ``results``. ``results`` holds one dict per backbone and ``with_cp``, with ``peak_bytes``
        (activations, gradients and outputs, without weights and momentum) and the figures of
        :func:`summarise`.

    Raises:
        UsageError: a number is too small, mmdet cannot run here, or there is no GPU for ``"cuda"``.
    """
    # The smallest map of the neck has a 64th of the image's side.
    for argument, number, least in (
        ("size", min(size), 64),
        ("batch_size", batch_size, 1),
        ("rounds", rounds, 1),
    ):
        if number < least:
            raise UsageError(f"must be at least {least}, got {number}", argument)
    target = choose_device(device)
    LIBRARIES["mmdet"].require()
    height, width = size
    rows: list[dict] = []
    result = environment(target) | dict(
        date=datetime.date.today().isoformat(),
        settings=dict(config=CONFIG, size=list(size), batch_size=batch_size, rounds=rounds),
        results=rows,
    )
    path = out / f"detection_{target.type}.json"
    calls = {}
    for name in BACKBONES:
        for with_cp in (False, True):
            torch.manual_seed(0)
            model = build_detector(name, with_cp).train().to(target)
            call = training_step(model, (height, width), batch_size)
            call()
            row = dict(backbone=name, with_cp=with_cp, peak_bytes=peak_memory(call, target))
            rows.append(row)
            calls[_label(row)] = call
            write_json(result, path)
    times = time_interleaved(calls, target, rounds)
    for row in rows:
        row |= summarise(times[_label(row)])
    write_json(result, path)
    return result


def _label(row: dict) -> str:
    return f"{row['backbone']}, with_cp" if row["with_cp"] else row["backbone"]


def format_detection(result: dict) -> str:
    """Format a table with memory and time of each detector, with ratios to the last backbone.

    Args:
        result: result of :func:`benchmark_detection`.
    """
    rows = result["results"]
    other = next(row for row in rows if row["backbone"] == list(BACKBONES)[-1])
    table = [["backbone", "MiB", "ratio", "ms", "ratio"]]
    for row in rows:
        table.append(
            [
                _label(row),
                f"{row['peak_bytes'] / 2**20:.0f}",
                f"{row['peak_bytes'] / other['peak_bytes']:.2f}",
                f"{row['median_ms']:.0f}",
                f"{row['median_ms'] / other['median_ms']:.2f}",
            ]
        )
    return format_table(table)

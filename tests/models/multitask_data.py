"""Golden vectors of DeMT's head, and random batches of all tasks."""

import json
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from mmlocal.tasks import TASKS

GOLDEN = Path(__file__).parents[1] / "data/mtl/demt_head.npz"
ALL = dict(
    semseg=dict(num_classes=5),
    human_parts=dict(num_classes=7),
    sal={},
    depth={},
    normals={},
    edge={},
)


def golden_head() -> tuple[dict, dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """Meta, the official state dict, all arrays, and the maps of the backbone."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file if key != "meta"}
    official = {k.removeprefix("param."): v for k, v in arrays.items() if k.startswith("param.")}
    return meta, official, arrays, [arrays[f"input{i}"] for i in range(4)]


def random_labels(name: str, size: tuple[int, int], num_classes: int = 2) -> Tensor:
    """Labels of a task as a pipeline packs them; about a tenth is ignored."""
    if name == "depth":
        labels = 10 * torch.rand(1, *size)
    elif name == "normals":
        labels = torch.nn.functional.normalize(torch.randn(3, *size), dim=0)
    else:
        labels = torch.randint(num_classes, (1, *size))
    return torch.where(torch.rand(size) < 0.1, 255, labels)


def sample(tasks: dict, size: tuple[int, int], **meta: object) -> SegDataSample:
    """A data sample with random labels of the tasks."""
    made = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size) | meta)
    for name, options in tasks.items():
        labels = random_labels(name, size, options.get("num_classes", 2))
        setattr(made, TASKS[name].gt_field, PixelData(data=labels))
    return made


def batch(tasks: dict, *sizes: tuple[int, int]) -> dict:
    """A batch of random images, as a data loader hands it over."""
    return dict(
        inputs=[torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes],
        data_samples=[sample(tasks, size) for size in sizes],
    )

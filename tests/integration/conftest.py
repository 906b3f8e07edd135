"""The generated data, tiny versions of our own configs, and a finished run of each."""

import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.structures import PixelData
from tools.conftest import LIBRARIES, TOOLS, start

import mmlocal
from mmlocal import config_path
from mmlocal.datasets.shapes import generate_shapes

# Library -> settings that narrow its model, and turn on all random parts of our models.
_MODELS = {
    "mmdet": (
        "elsa_swin_nano_maskrcnn_shapes",
        """
model = dict(
    neck=dict(in_channels=[16, 32, 64, 128]),
    roi_head=dict(bbox_head=dict(fc_out_channels=32)),
)
train_cfg = dict(max_epochs=3, val_interval=1)
""",
    ),
    "mmseg": (
        "elsa_swin_nano_upernet_shapes",
        """
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=16),
    auxiliary_head=dict(in_channels=64, channels=16),
)
train_cfg = dict(max_iters=6, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
""",
    ),
    "mmpretrain": (
        "elsa_swin_nano_shapes",
        """
model = dict(
    head=dict(in_channels=128), train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8)])
)
train_cfg = dict(max_epochs=3, val_interval=1)
""",
    ),
}
_COMMON = """
model = dict(
    backbone=dict(
        arch=dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], group_width=4),
        drop_path_rate=0.3,
    )
)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
test_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=-1))
randomness = dict(deterministic=True)
"""


def succeeds(*command, cwd: Path, **env: str) -> str:
    """Run a tool that must succeed, and return its output."""
    result = start(*command, cwd=cwd, **env)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def helpers_path() -> str:
    """A ``PYTHONPATH`` with mmlocal and the hooks of this folder."""
    return os.pathsep.join([str(Path(__file__).parent), str(Path(mmlocal.__file__).parents[1])])


def scalars(work_dir: Path, key: str = "loss") -> dict[int, dict]:
    """Map steps to logged entries with ``key``, without times. Later runs in a folder win."""
    entries = {}
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if key in entry:
                kept = {k: v for k, v in entry.items() if k not in ("time", "data_time", "memory")}
                entries[entry["step"]] = kept
    return entries


def write_config(library: str, path: Path, more: str = "") -> Path:
    """A config of ``library`` that inherits the tiny config, or the tiny config itself."""
    name, body = _MODELS[library]
    base = path.with_name(f"base_of_{path.name}")
    base.write_text(f'_base_ = "{config_path(name)}"\n{_COMMON}')
    own = path.with_name(f"own_of_{path.name}")
    own.write_text(f'_base_ = "{base.name}"\n{body}')
    path.write_text(f'_base_ = "{own.name}"\n{more}')
    return path


def random_batch(library: str, num_classes: int = 80, size: int = 64) -> dict:
    """Two random images with labels, as the data loader of ``library`` gives them."""
    torch.manual_seed(0)
    inputs = list(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
    if library == "mmdet":
        from mmdet.testing import demo_mm_inputs

        shapes = [[3, size, size]] * 2
        return demo_mm_inputs(2, shapes, num_items=[1, 2], num_classes=num_classes, with_mask=True)
    if library == "mmseg":
        from mmseg.structures import SegDataSample

        samples = [SegDataSample(metainfo=dict(img_shape=(size, size))) for _ in inputs]
        for sample in samples:
            labels = torch.randint(0, num_classes, (1, size, size))
            sample.gt_sem_seg = PixelData(data=labels)
    else:
        from mmpretrain.structures import DataSample

        samples = [DataSample().set_gt_label(label) for label in (3, 7)]
    return dict(inputs=inputs, data_samples=samples)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A working directory with ``data/shapes``: 8 pictures to train on, 4 for validation."""
    folder = tmp_path_factory.mktemp("integration")
    generate_shapes(
        folder / "data/shapes",
        num_train=8,
        num_val=4,
        image_size=64,
        cls_size=32,
        progress=False,
    )
    return folder


@pytest.fixture(scope="session", params=LIBRARIES)
def library(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def trained(library, folder) -> tuple[Path, Path]:
    """Config and work dir of an uninterrupted run of each library in turn."""
    config = write_config(library, folder / f"tiny_{library}.py")
    work_dir = folder / f"whole_{library}"
    succeeds(TOOLS / "train.py", config, "--work-dir", work_dir, cwd=folder)
    return config, work_dir

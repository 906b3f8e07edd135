"""Tiny data sets and configs of the three libraries, and a function that starts a tool."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

import mmlocal
from tools.copies import run_copy

TOOLS = Path(__file__).parents[2] / "tools"
LIBRARIES = ["mmdet", "mmseg", "mmpretrain"]


def load_tool(name: str) -> ModuleType:
    """The module with the ``parse_args`` and ``main`` of a tool."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "tool", module)  # the module of the subcommand


def environment(**env: str) -> dict[str, str]:
    """Environment variables of a tool, so that it uses one thread, this Python and this mmlocal."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # the python of this environment for shell scripts, and mmlocal also if not installed
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(Path(mmlocal.__file__).parents[1]),
        **env,
    }


def start(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run a Python or shell script from ``cwd``, and capture its output as text."""
    command = [str(part) for part in command]
    if command[0].endswith(".py"):
        return run_copy(command, cwd, environment(**env), timeout=300)
    return subprocess.run(
        command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=300
    )


def free_port() -> str:
    """A free port for a distributed run, because several may run at a time."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Undo the environment variables that the functions under test set for their process."""
    monkeypatch.setenv("LOCAL_RANK", "0")


def _image(path: Path, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
    cv2.imwrite(str(path), image)
    return image


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """``det`` (COCO format), ``seg`` (image and PNG folders) and ``cls`` (class folders)."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        make_coco(root / "det", split, count, rng)
        for i in range(count):
            _image(root / f"seg/images/{split}/{i}.jpg", rng)
            labels = root / f"seg/labels/{split}/{i}.png"
            labels.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(labels), rng.integers(0, 3, (64, 64), dtype=np.uint8))
            _image(root / f"cls/{split}/{'ab'[i % 2]}/{i}.png", rng, size=32)
    return root


def make_coco(root: Path, split: str, count: int, rng: np.random.Generator) -> None:
    """Images of noise. Each has one box with a polygon, of one of the first three COCO classes."""
    images, annotations = [], []
    for i in range(1, count + 1):
        _image(root / split / f"{i}.jpg", rng)
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 64})
        x, y, w, h = 8, 8, 40, 32
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "id": i,
                "image_id": i,
                "category_id": 1 + i % 3,
                "bbox": [x, y, w, h],
                "area": w * h,
                "segmentation": [polygon],
                "iscrowd": 0,
            }
        )
    from mmdet.datasets import CocoDataset  # the metric wants a category for each class of a model

    names = CocoDataset.METAINFO["classes"]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))


_COMMON = """
default_scope = "{library}"
train_cfg = dict(type="IterBasedTrainLoop", max_iters=2, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01))
auto_scale_lr = dict(base_batch_size=16)
visualizer = dict(type="{visualizer}", vis_backends=[dict(type="LocalVisBackend")])
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2),
    visualization=dict(type="{hook}"),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)


def loader(dataset, shuffle):
    return dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type="{sampler}" if shuffle else "DefaultSampler", shuffle=shuffle),
        dataset=dataset,
    )
"""

_MMDET = """
model = dict(
    type="RetinaNet",
    data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32),
    backbone=dict(type="ResNet", depth=18, base_channels=8, stem_channels=8),
    neck=dict(type="FPN", in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4),
    bbox_head=dict(
        type="RetinaHead",
        num_classes=3,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[4], ratios=[1.0], strides=[4, 8, 16, 32]
        ),
    ),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type="PseudoSampler"),
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(nms_pre=50, nms=dict(type="nms", iou_threshold=0.5), max_per_img=9),
)
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(64, 64)),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]


def dataset(split):
    return dict(
        type="CocoDataset",
        metainfo=dict(classes=("person", "bicycle", "car")),
        data_root="{root}/det",
        ann_file=split + ".json",
        data_prefix=dict(img=split),
        pipeline=pipeline,
    )


train_dataloader = loader(dataset("train"), True)
val_dataloader = test_dataloader = loader(dataset("val"), False)
val_evaluator = test_evaluator = dict(
    type="CocoMetric", metric="bbox", ann_file="{root}/det/val.json"
)
"""

_MMSEG = """
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", size=(64, 64)),
    backbone=dict(type="ResNet", depth=18, base_channels=8, stem_channels=8),
    decode_head=dict(
        type="FCNHead", in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3
    ),
    test_cfg=dict(mode="whole"),
)
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_model = dict(type="SegTTAModel")
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]


def dataset(split):
    return dict(
        type="BaseSegDataset",
        metainfo=dict(classes=("a", "b", "c"), palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0]]),
        data_root="{root}/seg",
        data_prefix=dict(img_path="images/" + split, seg_map_path="labels/" + split),
        pipeline=pipeline,
    )


train_dataloader = loader(dataset("train"), True)
val_dataloader = test_dataloader = loader(dataset("val"), False)
val_evaluator = test_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
"""

_MMPRETRAIN = """
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(num_classes=2),
    backbone=dict(type="ResNet_CIFAR", depth=18, base_channels=8, stem_channels=8),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=2, in_channels=64),
)
pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]


def dataset(split):
    return dict(
        type="CustomDataset", data_root="{root}/cls", data_prefix=split, pipeline=pipeline
    )


train_dataloader = loader(dataset("train"), True)
val_dataloader = test_dataloader = loader(dataset("val"), False)
val_evaluator = test_evaluator = dict(type="Accuracy", topk=(1,))
"""

_NAMES = {
    "mmdet": {"visualizer": "DetLocalVisualizer", "hook": "DetVisualizationHook"},
    "mmseg": {"visualizer": "SegLocalVisualizer", "hook": "SegVisualizationHook"},
    "mmpretrain": {"visualizer": "UniversalVisualizer", "hook": "VisualizationHook"},
}
_BODIES = {"mmdet": _MMDET, "mmseg": _MMSEG, "mmpretrain": _MMPRETRAIN}


def write_config(library: str, root: Path, path: Path) -> Path:
    """Write a complete config for a tiny stock model of ``library`` and the data in ``root``."""
    text = _COMMON + _BODIES[library]
    for key, value in dict(
        library=library, root=root.as_posix(), sampler="InfiniteSampler", **_NAMES[library]
    ).items():
        text = text.replace(f"{{{key}}}", value)
    path.write_text(text)
    return path


@pytest.fixture(params=LIBRARIES)
def library(request) -> str:
    return request.param


@pytest.fixture
def config(library, data, tmp_path) -> Path:
    """A tiny config of each library in turn."""
    return write_config(library, data, tmp_path / f"tiny_{library}.py")

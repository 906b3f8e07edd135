"""The trained networks that come with mmlocal are there, whole, and as good as the page says."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.registry import DefaultScope

import mmlocal
from mmlocal.checkpoints import load_file
from mmlocal.checkpoints.files import sha256_of
from mmlocal.datasets.shapes import CLASSES, SEG_CLASSES, SEG_PALETTE, generate_shapes

ROOT = Path(__file__).parents[2]
NAME = "elsa_swin_nano_shapes"
SEGMENTOR = "elsa_swin_nano_upernet_shapes"
NUM_SCENES = 16
# Mean IoU of these pictures in percent, by this test. Decoders and CPUs may move it a little.
MEASURED = 57.1
PAGE = (ROOT / "docs/inference.md").read_text()


@pytest.fixture(autouse=True)
def scope():
    """MMPreTrain's inferencer takes the default scope that an earlier test may have left."""
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


def entry_of(name: str) -> dict:
    text = Path(mmlocal.config_path(name)).with_name("metafile.yml").read_text()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return next(model for model in yaml.load(text, loader)["Models"] if model["Name"] == name)


@pytest.mark.parametrize(
    ("name", "classes", "largest"), [(NAME, CLASSES, 2.5e6), (SEGMENTOR, SEG_CLASSES, 3.5e6)]
)
def test_file(name, classes, largest):
    assert name in mmlocal.list_weights()
    path = Path(mmlocal.weights_path(name))
    assert path == Path(mmlocal.weights_path(f"{name}.py"))
    assert path.stat().st_size < largest
    digest = sha256_of(path)
    assert path.name == f"{name}-{digest[:8]}.pth"
    entry = entry_of(name)
    assert entry["Metadata"]["SHA-256"] == digest
    assert entry["Metadata"]["File"] == f"weights/{path.name}"
    assert digest in PAGE
    assert f"weights/{path.name}" in PAGE
    assert torch.load(path, weights_only=True)
    content = load_file(path)
    assert content["meta"]["dataset_meta"]["classes"] == classes
    assert "work_dir" not in content["meta"]["cfg"]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    weights = content["state_dict"].items()
    sizes = [value.numel() for key, value in weights if not key.endswith(buffers)]
    assert entry["Metadata"]["Parameters"] == sum(sizes)


def test_other_names():
    with pytest.raises(
        ValueError, match=rf"come with mmlocal \({NAME}, {SEGMENTOR}\), got 'elsa_swin_t_in1k"
    ):
        mmlocal.weights_path("elsa_swin_t_in1k_300e")
    for find in (mmlocal.weights_path, mmlocal.config_path):
        with pytest.raises(ValueError, match=r"name must be .*, got None"):
            find(None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "data"
    generate_shapes(folder, tasks=["cls"], num_train=1, num_val=200, seed=1, progress=False)
    return folder / "cls/val"


def test_accuracy_on_new_pictures(pictures):
    """The first 200 of the pictures on which the page's figure was measured."""
    mmpretrain = pytest.importorskip("mmpretrain")
    inferencer = mmpretrain.ImageClassificationInferencer(
        NAME, pretrained=mmlocal.weights_path(NAME), device="cpu"
    )
    files = sorted(pictures.rglob("*.jpg"))
    assert len(files) == 200
    found = inferencer([str(file) for file in files], batch_size=50)
    right = [
        result["pred_class"] == file.parent.name for file, result in zip(files, found, strict=True)
    ]
    (promised,) = entry_of(NAME)["Results"][0]["Metrics"].values()
    assert f"| {promised:.1f} % |" in PAGE
    # Two standard errors of 200 pictures.
    error = 2 * np.sqrt(promised / 100 * (1 - promised / 100) / 200)
    assert np.mean(right) >= promised / 100 - error


def test_three_lines_of_the_page(pictures, monkeypatch, capsys):
    pytest.importorskip("mmpretrain")
    block = re.search(r"## In a minute\n.*?```python\n(.*?)```", PAGE, re.DOTALL)[1]
    (named,) = re.findall(r'"data/few/cls/val/(\w+)/(\w+\.jpg)"', block)
    picture = pictures.joinpath(*named)
    assert picture.is_file()
    exec(block.replace(f"data/few/cls/val/{'/'.join(named)}", str(picture)), {})
    # MMPreTrain may show its progress in the same line.
    assert capsys.readouterr().out.rstrip().endswith(named[0])
    assert "# " + named[0] in block


def test_attention_pictures(pictures, tmp_path):
    """The command of the page, on one layer."""
    from mmlocal.cli.visualize_attention import main

    (picture, *_) = sorted(pictures.rglob("*.jpg"))
    main([NAME, mmlocal.weights_path(NAME), str(picture), "--out-dir", str(tmp_path),
          "--layers", "*stages.0*"])  # fmt: skip
    (drawn,) = tmp_path.iterdir()
    assert drawn.name == f"{picture.stem}_overview.jpg"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    generate_shapes(folder, tasks=["seg"], num_train=1, num_val=NUM_SCENES, seed=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def segmentor() -> Callable:
    apis = pytest.importorskip("mmseg.apis")
    return apis.MMSegInferencer(
        mmlocal.config_path(SEGMENTOR),
        mmlocal.weights_path(SEGMENTOR),
        classes=SEG_CLASSES,
        palette=SEG_PALETTE,
        device="cpu",
    )


def test_segmentation_of_new_pictures(scenes, segmentor):
    """The first of the pictures on which the page's figure was measured."""
    truths = sorted((scenes / "annotations/val").iterdir())
    files = [str(scenes / "val" / f"{path.stem}.jpg") for path in truths]
    found = segmentor(files, batch_size=8)["predictions"]
    counts = np.zeros((len(SEG_CLASSES),) * 2, int)
    for path, labels in zip(truths, found, strict=True):
        np.add.at(counts, (cv2.imread(str(path), cv2.IMREAD_UNCHANGED), labels), 1)
    both = counts.diagonal()
    iou = 100 * np.mean(both / (counts.sum(0) + counts.sum(1) - both))
    (promised,) = entry_of(SEGMENTOR)["Results"][0]["Metrics"].values()
    assert f"| {promised:.1f} % |" in PAGE
    assert iou == pytest.approx(MEASURED, abs=1)


def test_segmentation_on_the_page(scenes, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mmseg")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"## In a minute\n.*?```python\n.*?```python\n(.*?)```", PAGE, re.DOTALL)[1]
    (named,) = re.findall(r'"data/few/(val/\w+\.jpg)"', block)
    exec(block.replace(f"data/few/{named}", str(scenes / named)), {})
    (promised,) = re.findall(r"# (\[.*\])", block)
    assert capsys.readouterr().out.rstrip().endswith(promised)
    drawn = cv2.imread(f"segmented/vis/{Path(named).name}")
    assert drawn.std() > 10

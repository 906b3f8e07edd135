"""The trained network that comes with mmlocal is there, whole, and as good as the page says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.registry import DefaultScope

import mmlocal
from mmlocal.checkpoints import load_file
from mmlocal.checkpoints.files import sha256_of
from mmlocal.datasets.shapes import CLASSES, generate_shapes

ROOT = Path(__file__).parents[2]
NAME = "elsa_swin_nano_shapes"
PAGE = (ROOT / "docs/inference.md").read_text()


@pytest.fixture(autouse=True)
def scope():
    """MMPreTrain's inferencer takes the default scope that an earlier test may have left."""
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield


@pytest.fixture(scope="module")
def entry() -> dict:
    text = (ROOT / "configs/mmpretrain/metafile.yml").read_text()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return next(model for model in yaml.load(text, loader)["Models"] if model["Name"] == NAME)


def test_file(entry):
    assert mmlocal.list_weights() == [NAME]
    path = Path(mmlocal.weights_path(NAME))
    assert path == Path(mmlocal.weights_path(f"{NAME}.py"))
    assert path.stat().st_size < 2_500_000
    digest = sha256_of(path)
    assert path.name == f"{NAME}-{digest[:8]}.pth"
    assert entry["Metadata"]["SHA-256"] == digest
    assert entry["Metadata"]["File"] == f"weights/{path.name}"
    assert digest in PAGE
    assert f"weights/{path.name}" in PAGE
    assert torch.load(path, weights_only=True)
    content = load_file(path)
    assert content["meta"]["dataset_meta"]["classes"] == CLASSES
    assert "work_dir" not in content["meta"]["cfg"]
    sizes = [value.numel() for value in content["state_dict"].values()]
    assert entry["Metadata"]["Parameters"] == sum(sizes)


def test_other_names():
    with pytest.raises(ValueError, match=rf"come with mmlocal \({NAME}\), got 'elsa_swin_t_in1k"):
        mmlocal.weights_path("elsa_swin_t_in1k_300e")
    for find in (mmlocal.weights_path, mmlocal.config_path):
        with pytest.raises(ValueError, match=r"name must be .*, got None"):
            find(None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "data"
    generate_shapes(folder, tasks=["cls"], num_train=1, num_val=200, seed=1, progress=False)
    return folder / "cls/val"


def test_accuracy_on_new_pictures(pictures, entry):
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
    (promised,) = entry["Results"][0]["Metrics"].values()
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

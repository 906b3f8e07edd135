"""MMPreTrain's model API knows our models by name, and loads files and folders."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

import mmlocal
from mmlocal.cli.publish import publish
from mmlocal.registry import MODELS

mmpretrain = pytest.importorskip("mmpretrain")
NANO = "elsa_swin_nano_shapes"
CLASSES = [f"class {i}" for i in range(9)]


def ours() -> set[str]:
    return {name for name in mmpretrain.list_models() if mmpretrain.ModelHub.has(name)} & {
        name.lower() for name in mmlocal.list_configs("mmpretrain")
    }


def test_names():
    found = mmpretrain.list_models("*elsa*")
    assert {"elsa_swin_t_in1k_300e", "elsa_volo_d1_in1k_300e", "swin_t_elsa_mul_in1k_300e"} <= {
        *found
    }
    generated = {name for name in mmlocal.list_configs("mmpretrain") if "shapes" in name}
    assert ours() == {*mmlocal.list_configs("mmpretrain")} - generated | {NANO}
    assert "swin-tiny_16xb64_in1k" in mmpretrain.list_models("swin")  # MMPreTrain's are still there
    assert "elsa_swin_t_in1k_300e" in mmpretrain.list_models(task="Image Classification")
    assert "elsa_swin_t_maskrcnn_1x" not in mmpretrain.list_models()


def test_no_name_promises_a_download():
    assert [name for name in ours() if mmpretrain.ModelHub._models_dict[name].weights] == []
    with pytest.warns(UserWarning, match="Unable to find pre-defined checkpoint"):
        mmpretrain.get_model(NANO, pretrained=True)


def test_configs_of_the_names():
    for name in ours():
        model = mmpretrain.ModelHub._models_dict[name]
        assert Path(model.config).resolve() == Path(mmlocal.config_path(name))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run with the weights of a random network."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("run")
    model = mmpretrain.get_model(NANO)
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / "epoch_1.pth")
    return folder


def test_get_model_of_files_and_folders(trained, tmp_path):
    pytest.importorskip("safetensors")
    new = publish(trained, tmp_path / "published", format="safetensors")
    expected = torch.load(trained / "epoch_1.pth")["state_dict"]
    for pretrained in (trained / "epoch_1.pth", trained, new, new.parent):
        model = mmpretrain.get_model(NANO, pretrained=str(pretrained))
        assert type(model.backbone) is MODELS.get("mmlocal.ELSASwin")
        assert not model.training
        assert model._dataset_meta["classes"] == CLASSES
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected[name]), (pretrained, name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no"):
        mmpretrain.get_model(NANO, pretrained=str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"none\.pth can not be found"):
        mmpretrain.get_model(NANO, pretrained=str(tmp_path / "none.pth"))


def test_arguments_of_the_model():
    model = mmpretrain.get_model(
        NANO, backbone=dict(out_indices=(0, 1, 2, 3)), head=None, neck=None
    )
    maps = model.extract_feat(torch.zeros(1, 3, 64, 64))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
        (256, 2, 2),
    ]


def test_inferencers(trained, tmp_path):
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), np.full((64, 64, 3), 90, np.uint8))
    # Another test of this process may have left the scope of another library.
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        inferencer = mmpretrain.ImageClassificationInferencer(NANO, pretrained=str(trained))
        (result,) = inferencer(str(picture))
        again = mmpretrain.inference_model(NANO, str(picture), pretrained=str(trained))
    assert result["pred_class"] == CLASSES[result["pred_label"]]
    assert sum(result["pred_scores"]) == pytest.approx(1, abs=1e-5)
    assert again["pred_score"] == pytest.approx(result["pred_score"], abs=1e-6)

"""Every config in configs/, found by itself: its form, and a prediction of its model."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.utils import get_object_from_string

import mmlocal.registry
from mmlocal.libraries import LIBRARIES, library_of

ROOT = Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in ROOT.rglob("*.py") if "_base_" not in path.parts)
BASES = sorted(path for path in ROOT.rglob("*.py") if "_base_" in path.parts)

OURS = set()
for registry in vars(mmlocal.registry).values():
    if isinstance(registry, Registry) and registry.scope == "mmlocal":
        registry.import_from_location()
        OURS |= set(registry.module_dict)


def types(node: object) -> set[str]:
    """All values of ``type`` in a nested config."""
    if isinstance(node, dict):
        own = {node["type"]} if isinstance(node.get("type"), str) else set()
        return own.union(*map(types, node.values()))
    if isinstance(node, (list, tuple)):
        return set().union(*map(types, node))
    return set()


def test_there_are_configs():
    assert FILES
    assert "ELSASwin" in OURS
    assert {path.relative_to(ROOT).parts[0] for path in FILES + BASES} <= set(LIBRARIES)


def test_names_are_unique():
    """MIM finds a config by its file name alone."""
    stems = [path.stem for path in FILES]
    assert len(set(stems)) == len(stems)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_form(path):
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", path.stem)
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "an experiment begins with a docstring"
    cfg = Config.fromfile(path)
    of_folder = LIBRARIES[path.relative_to(ROOT).parts[0]]
    assert isinstance(library_of(cfg), type(of_folder))  # multi-task configs are among mmseg's
    assert "custom_imports" not in cfg, "MMEngine imports mmlocal.registry by the scope of a type"
    used = types(cfg.to_dict())
    assert not used & OURS, "write 'mmlocal.X': the bare name is not found from another scope"
    of_mmlocal = {t for t in used if t.startswith("mmlocal.")} - {
        f"mmlocal.{name}" for name in OURS
    }
    for path in of_mmlocal:  # what no registry of MMEngine holds is named by its path
        assert get_object_from_string(path) is not None


@pytest.mark.parametrize("path", FILES + BASES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_bases_are_relative_paths(path):
    """``mmseg::...`` does not resolve with the OneDL fork."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_base_":
            bases = ast.literal_eval(node.value)
            for base in [bases] if isinstance(bases, str) else bases:
                assert "::" not in base
                assert (path.parent / base).is_file()


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_base_is_left_over(path):
    """Each one is reached from an experiment."""
    assert path.resolve() in {base.resolve() for file in FILES for base in _ancestors(file)}


def _ancestors(path: Path) -> set[Path]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_base_":
            bases = ast.literal_eval(node.value)
            for base in [bases] if isinstance(bases, str) else bases:
                found |= {path.parent / base} | _ancestors(path.parent / base)
    return found


def batch(scope: str, height: int = 64, width: int = 96) -> dict:
    """One random image as the data loader of a task gives it."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 255, (3, height, width), dtype=np.uint8))
    meta = dict(
        img_shape=(height, width),
        ori_shape=(height, width),
        pad_shape=(height, width),
        scale_factor=(1.0, 1.0),
        img_id=0,
        img_path="random.png",
    )
    if scope == "mmdet":
        from mmdet.structures import DetDataSample as Sample
    elif scope == "mmseg":
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmpretrain.structures import DataSample as Sample
    return dict(inputs=[image], data_samples=[Sample(metainfo=meta)])


def of_one_block(backbone: dict) -> None:
    """Leave one block in each stage of a VOLO: the 19 of them have 2.7 billion parameters."""
    kind = MODELS.get(backbone["type"])
    backbone["arch"] = dict(kind.arch_zoo[backbone["arch"]], depths=[1, 1, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_prediction(path):
    """Built as by the runner, in full width, and run through the model's own ``test_step``."""
    cfg = Config.fromfile(path)
    if "volo_d" in path.stem:
        of_one_block(cfg.model.backbone)
    scope = cfg.default_scope
    pytest.importorskip(scope, reason="the library of this config is not installed")
    if scope in ("mmdet", "mmseg"):
        pytest.importorskip("mmcv._ext", reason=f"{scope} needs the compiled ops of mmcv")
    cfg.model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))
    if "rpn" in cfg.model.get("test_cfg", {}):
        cfg.model.test_cfg.rpn.max_per_img = 4  # an untrained one finds objects everywhere
    data = batch(scope)
    if "mmlocal.QnAPooling" in types(cfg.model.to_dict()):
        data = batch(scope, 224, 224)  # it pools maps of one size only
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope), torch.no_grad():
        model = MODELS.build(cfg.model).eval()
        (sample,) = model.test_step(data)
    if scope == "mmdet":
        found = sample.pred_instances
        assert found.bboxes.shape == (len(found), 4)
        assert found.scores.isfinite().all()
        if model.with_mask:
            assert found.masks.shape == (len(found), 64, 96)
    elif scope == "mmseg":
        assert sample.pred_sem_seg.data.shape == (1, 64, 96)
        assert sample.seg_logits.data.isfinite().all()
    elif cfg.model.type == "mmlocal.AutoEncoder":
        assert sample.gt_image.shape == sample.pred_image.shape == (3, 64, 96)
        assert sample.pred_image.isfinite().all()
    else:
        assert sample.pred_score.shape == (cfg.model.head.num_classes,)
        torch.testing.assert_close(sample.pred_score.sum(), torch.tensor(1.0))

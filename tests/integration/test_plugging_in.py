"""The configs in docs/plugging_in.md and in README.md build, and train a step."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import is_installed
from tools.conftest import environment

from .conftest import random_batch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE, README = ((ROOT / name).read_text() for name in ("docs/plugging_in.md", "README.md"))
OF_PAGE, OF_README = (
    dict(re.findall(r"```python\n# (\w+\.py)[^\n]*\n(.*?)```", text, re.DOTALL))
    for text in (PAGE, README)
)
CONFIGS = OF_PAGE | OF_README
(INIT_CFG,) = re.findall(r"`(init_cfg=.*)`", PAGE)


def test_every_block_is_found():
    assert len(OF_PAGE) == PAGE.count("```python") == 7
    assert len(OF_README) == README.count("model = dict(") == 3
    assert len(CONFIGS) == 10


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    """A folder with the configs that the page shows."""
    folder = tmp_path_factory.mktemp("plugging_in")
    (commands,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    subprocess.run(["bash", "-e", "-c", commands], cwd=folder, env=environment(), check=True)
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    weights = MODELS.build(dict(type="mmlocal.ELSASwin", arch="tiny")).state_dict()
    torch.save({f"backbone.{k}": v for k, v in weights.items()}, folder / "elsa_swin_t.pth")
    return folder


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("mmdet", "retinanet/retinanet_r50_fpn_1x_coco.py"),
        ("mmpretrain", "swin_transformer/swin-tiny_16xb64_in1k.py"),
        ("mmseg", "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"),
    ],
)
def test_stock_configs_by_the_name_of_their_library(library, name, configs, tmp_path):
    """``mmdet::`` and ``mmpretrain::`` resolve with the forks, but ``mmseg::`` does not."""
    (tmp_path / "named.py").write_text(f"_base_ = '{library}::{name}'\n")
    if library == "mmseg" and not is_installed("mmsegmentation"):
        with pytest.raises(ModuleNotFoundError, match="mmsegmentation is not installed"):
            Config.fromfile(tmp_path / "named.py")
        return
    stock = Config.fromfile(configs / "stock" / library / name)
    assert without_scope(Config.fromfile(tmp_path / "named.py").to_dict()) == stock.to_dict()


def without_scope(node: object) -> object:
    """Drop ``_scope_``, which MMEngine adds to configs of another package."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != "_scope_"}
    if isinstance(node, (list, tuple)):
        return type(node)(map(without_scope, node))
    return node


@pytest.mark.parametrize("name", CONFIGS)
def test_training_step(name, configs, monkeypatch):
    monkeypatch.chdir(configs)  # where the weights are
    cfg = Config.fromfile(configs / name)
    assert cfg.optim_wrapper.optimizer.type == "AdamW"
    scope = cfg.default_scope
    cfg.model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
        model.init_weights()
        first = model.backbone.patch_embed.proj.weight
        pretrained = torch.load("elsa_swin_t.pth")["backbone.patch_embed.proj.weight"]
        assert torch.equal(first, pretrained) == (name in OF_README)
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        size = 224 if "dino" in name else 64  # DINO needs more tokens than its 900 queries
        data = model.data_preprocessor(random_batch(scope, size=size), training=True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
    assert loss.isfinite()
    loss.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    optim_wrapper.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_readme_and_page_load_weights_alike():
    assert all(INIT_CFG in text for text in OF_README.values())


def test_layer_decay_is_as_described(configs):
    cfg = Config.fromfile(configs / "layer_decay.py")
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model)
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[group["params"][0]]: group["lr"] / 1e-4 for group in groups}
    blocks = sum(model.backbone.depths)
    assert rates["backbone.patch_embed.proj.weight"] == pytest.approx(0.8 ** (blocks + 1))
    assert rates["backbone.stages.0.blocks.0.norm1.weight"] == pytest.approx(0.8**blocks)
    assert rates["backbone.stages.3.blocks.1.norm1.weight"] == pytest.approx(0.8)
    assert rates["backbone.norm3.weight"] == rates["neck.lateral_convs.0.conv.weight"] == 1

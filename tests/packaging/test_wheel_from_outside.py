"""An installed wheel, far from any clone: the command, and configs that inherit ours.

The configs are those of docs/inheriting.md.
"""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from test_forms import build_wheel, call, copy_tree, pip

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "inheriting.md").read_text()
CONFIGS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of an installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(copy_tree(folder / "source"), folder)
    pip("install", "--no-deps", "--no-index", "--target", folder / "site", wheel)
    return folder / "site"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of a user, with the configs of the page."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    return folder


def mmlocal(*arguments, site: Path, cwd: Path) -> str:
    env = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return call(site / "bin" / "mmlocal", *arguments, cwd=cwd, env=env)


def test_every_block_is_found():
    assert list(CONFIGS) == ["my_maskrcnn.py", "my_new_style.py"]
    assert PAGE.count("```python") == 2


def test_command_is_installed(site, folder):
    assert mmlocal("--help", site=site, cwd=folder).startswith("usage: mmlocal ")
    path = mmlocal("configs", "elsa_swin_t_maskrcnn_1x", site=site, cwd=folder).strip()
    assert Path(path).is_relative_to(site)
    tool = site / "mmlocal/.mim/tools/train.py"
    env = {"PYTHONPATH": str(site)}
    assert "--resume" in call(sys.executable, tool, "--help", cwd=folder, env=env)


def read(config: str, site: Path, cwd: Path) -> Config:
    """Let MMEngine read a config with the installed wheel, and read it again after saving it."""
    code = """
import sys
from mmengine.config import Config
cfg = Config.fromfile(sys.argv[1])
cfg.dump("read.py")
"""
    call(sys.executable, "-c", code, config, cwd=cwd, env={"PYTHONPATH": str(site)})
    return Config.fromfile(cwd / "read.py")


def test_inheriting(site, folder):
    options = ["--cfg-options", "model.backbone.drop_path_rate=0.3"]
    saved = ["--save-path", "whole.py"]
    mmlocal("print-config", "my_maskrcnn.py", *options, *saved, site=site, cwd=folder)
    cfg = Config.fromfile(folder / "whole.py")
    assert cfg.model.roi_head.mask_head.num_classes == 3
    assert cfg.model.backbone == dict(type="mmlocal.ELSASwin", arch="tiny", drop_path_rate=0.3)
    assert cfg.train_dataloader.dataset.metainfo.classes == ("cat", "dog", "horse")
    assert cfg.train_dataloader.dataset.data_root == "data/animals/"
    base = Config.fromfile(ROOT / "configs/mmdet/elsa_swin_t_maskrcnn_1x.py")
    assert cfg.optim_wrapper == base.optim_wrapper
    assert cfg.train_dataloader.dataset.pipeline == base.train_dataloader.dataset.pipeline


def test_more_that_a_base_can_do(site, folder):
    (folder / "mine.py").write_text("extra = 5\n")
    base = '__import__("mmlocal").config_path("qna_vit_t_in1k_300e")'
    (folder / "several.py").write_text(
        f"_base_ = [{base}, './mine.py']\n"
        "rate = {{_base_.optim_wrapper.optimizer.lr}}\n"
        "pipeline = _base_.train_dataloader.dataset.pipeline\n"
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18))\n"
    )
    cfg = read("several.py", site, folder)
    assert cfg.rate == cfg.optim_wrapper.optimizer.lr
    assert cfg.pipeline == cfg.train_dataloader.dataset.pipeline
    assert cfg.extra == 5
    assert cfg.model.backbone == dict(type="ResNet", depth=18)
    path = mmlocal("configs", "qna_vit_t_in1k_300e", site=site, cwd=folder).strip()
    (folder / "plain.yml").write_text(f"_base_: {path}\nextra: 6\n")
    cfg = read("plain.yml", site, folder)
    assert cfg.extra == 6
    assert cfg.model.backbone.type == "mmlocal.QnAViT"


def test_new_style(site, folder):
    (command,) = re.findall(r"```\nmmlocal (print-config .*)\n```", PAGE)
    mmlocal(*shlex.split(command), site=site, cwd=folder)
    cfg = read("my_new_style.py", site, folder)
    assert cfg.optim_wrapper.optimizer.type == "torch.optim.AdamW"
    assert cfg.optim_wrapper.optimizer.lr == 5e-5
    base = Config.fromfile(ROOT / "configs/mmdet/elsa_swin_t_maskrcnn_1x.py")
    assert cfg.model == base.model
    assert cfg.train_dataloader == base.train_dataloader


@pytest.mark.slow
def test_training_from_outside(site, folder):
    """Data, a config that inherits, training and testing: all by the installed command."""
    data = ["--tasks", "cls", "--num-train", "8", "--num-val", "4"]
    mmlocal("make-shapes", *data, site=site, cwd=folder)
    (folder / "cls.py").write_text(
        '_base_ = __import__("mmlocal").config_path("elsa_swin_nano_shapes")\n'
        "train_cfg = dict(max_epochs=1, val_interval=1)\n"
    )
    loader = ["--cfg-options", "train_dataloader.batch_size=4"]
    log = mmlocal("train", "cls.py", *loader, site=site, cwd=folder)
    assert "accuracy/top1:" in log
    assert "OneDL" not in log
    weights = "work_dirs/cls/epoch_1.pth"
    assert os.path.isfile(folder / weights)
    assert "accuracy/top1:" in mmlocal("test", "cls.py", weights, site=site, cwd=folder)

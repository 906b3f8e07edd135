"""The examples in docs/operators.md run."""

import re
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import DefaultScope

from mmlocal.registry import MODELS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operators.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))


def test_config(tmp_path):
    pytest.importorskip("mmpretrain")
    path = tmp_path / "my_operators.py"
    path.write_text(EXAMPLES[path.name].replace("./configs", str(ROOT / "configs")))
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope("mmpretrain"), torch.device("meta"):
        backbone = MODELS.build(cfg.model.backbone)
    kinds = [[type(block.attn).__name__ for block in stage.blocks] for stage in backbone.stages]
    assert kinds == [["ELSA"] * 2, ["ELSA", "HaloAttention"], ["HaloAttention"] * 6,
                     ["WindowAttention"] * 2]  # fmt: skip


def test_own_class():
    names: dict = {}
    exec(EXAMPLES["my_mean.py"], names)
    backbone = names["backbone"].eval()
    with torch.no_grad():
        outs = backbone(torch.zeros(1, 3, 32, 64))
    assert [tuple(out.shape[2:]) for out in outs] == [(8, 16), (4, 8), (2, 4), (1, 2)]

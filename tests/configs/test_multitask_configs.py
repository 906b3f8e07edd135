"""The configs of multi-task dense prediction: their parts agree, and are what the sources say."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.config import DictAction
from mmengine.registry import METRICS, MODELS, DefaultScope
from mmengine.structures import PixelData

import mmlocal
from mmlocal.analysis import build_to_count
from mmlocal.tasks import TASKS

mmseg = pytest.importorskip("mmseg.structures")

ROOT = Path(__file__).parents[2]
NAMES = [
    f"{method}_{backbone}_{data}_40k"
    for data in ("nyud", "pascal")
    for backbone, methods in (
        ("hrnet18", ("single", "multitask", "demt", "itsa")),
        ("swin_t", ("single", "multitask", "demt", "itsa")),
        ("swin_s", ("single", "multitask", "demt", "itsa")),
        ("elsa_swin_t", ("itsa",)),
        ("qna_vit_t", ("itsa",)),
    )
    for method in methods
]


@pytest.fixture
def build():
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield MODELS.build


def load(name: str) -> Config:
    return Config.fromfile(mmlocal.config_path(name))


def test_all_are_here():
    assert set(NAMES) <= set(mmlocal.list_configs("mmseg"))


@pytest.mark.parametrize("name", NAMES)
def test_parts_agree(name):
    cfg = load(name)
    tasks = tuple(cfg.model.decode_head.tasks)
    classes = {
        task: options.num_classes
        for task, options in cfg.model.decode_head.tasks.items()
        if "num_classes" in options
    }
    nyud = "nyud" in name
    if nyud:
        assert tasks == ("semseg", "depth", "normals", "edge")
        assert classes == {"semseg": 40}
        size, rate = (425, 560), 0.01
    else:
        assert tasks == ("semseg", "human_parts", "sal", "normals", "edge")
        assert classes == {"semseg": 21, "human_parts": 7}
        size, rate = (512, 512), 0.005
        assert cfg.model.decode_head.tasks.edge.loss.pos_weight == 0.95
    for phase in ("train", "val", "test"):
        assert tuple(cfg[f"{phase}_dataloader"].dataset.tasks) == tasks
    for phase in ("val", "test"):
        assert tuple(cfg[f"{phase}_evaluator"].tasks) == tasks
        assert cfg[f"{phase}_evaluator"].num_classes == classes
    assert cfg.test_evaluator.edge.max_dist == (0.011 if nyud else 0.0075)
    assert tuple(cfg.model.data_preprocessor.size) == size == tuple(cfg.crop_size)
    # DeMT's settings; the rates of ATRC are for HRNet, whose DeMT config is not published.
    assert cfg.train_cfg.max_iters == 40000
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 8
    of_atrc = "hrnet18" in name and not name.startswith("itsa")
    optimizer = dict(type="SGD", lr=0.001, momentum=0.9, weight_decay=0.0005)
    assert cfg.optim_wrapper.optimizer == optimizer | (dict(lr=rate) if of_atrc else {})
    assert cfg.param_scheduler == dict(
        type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000
    )
    assert cfg.sync_bn == "torch"
    assert cfg.randomness == dict(seed=0)


# Computed for the released code of DeMT; its README has 32.07 M for Swin-T.
PARAMETERS = {
    "demt_hrnet18_nyud_40k": (3_860_720, 2_887_498),
    "demt_swin_t_nyud_40k": (27_520_698, 4_549_561),
    "demt_swin_s_nyud_40k": (48_838_602, 4_549_561),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_demt(name):
    model = build_to_count(load(name))
    parts = (model.backbone, model.decode_head)
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_the_index(name, index):
    model = build_to_count(load(name))
    assert sum(p.numel() for p in model.parameters()) == index[name].metadata.data["Parameters"]


def sample(tasks, height: int, width: int):
    """Random labels of all tasks, with an ignored row."""
    made = mmseg.SegDataSample()
    for name in tasks:
        if name == "normals":
            labels = torch.nn.functional.normalize(torch.randn(3, height, width), dim=0)
        elif name == "depth":
            labels = torch.rand(1, height, width) + 1
        else:
            labels = torch.randint(0, 2, (1, height, width))
        labels[:, 0] = 255
        made.set_data({TASKS[name].gt_field: PixelData(data=labels)})
    return made


@pytest.mark.parametrize("data", ["nyud", "pascal"])
@pytest.mark.parametrize("method", ["single", "multitask", "demt", "itsa"])
def test_training_step(method, data, build):
    """Of a narrow head: all losses, and a gradient for each parameter that can have one."""
    torch.manual_seed(0)
    cfg = load(f"{method}_hrnet18_{data}_40k").model
    cfg.decode_head.channels = 16
    if method == "itsa":
        cfg.decode_head.interaction = dict(position_channels=8, num_points=2)
    del cfg.data_preprocessor.size
    model = build(cfg).train()
    tasks = list(cfg.decode_head.tasks)
    inputs = [torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8) for _ in range(2)]
    batch = dict(inputs=inputs, data_samples=[sample(tasks, 32, 48) for _ in inputs])
    losses = model(**model.data_preprocessor(batch, True), mode="loss")
    assert list(losses) == [f"loss_{task}" for task in tasks]
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_lambda_of_the_article(build):
    cfg = load("itsa_hrnet18_nyud_40k").model
    step = build(cfg.decode_head).interaction.steps[0]
    assert step.attention.offset_grad_scale == 100
    assert step.attention.padding_mode == "border"
    assert step.attention.num_maps == 12
    assert step.attention.num_points == 16
    assert step.ffn[0].out_features == 1120


def test_own_tasks_of_the_docs(tmp_path):
    """The config of the section about other tasks."""
    page = (ROOT / "docs/multitask.md").read_text()
    (tmp_path / "own.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1))
    cfg = Config.fromfile(tmp_path / "own.py")
    assert [*cfg.model.decode_head.tasks] == ["semseg", "depth"]
    for phase in ("train", "val", "test"):
        assert tuple(cfg[f"{phase}_dataloader"].dataset.tasks) == ("semseg", "depth")
    for phase in ("val", "test"):
        metric = METRICS.build(cfg[f"{phase}_evaluator"])
        assert [task.name for task in metric.tasks] == ["semseg", "depth"]


def ablations() -> dict[str, list[str]]:
    """Options of each row of the table of ablations in docs/multitask.md."""
    page = (ROOT / "docs/multitask.md").read_text().split("## Ablations", 1)[1]
    rows = re.findall(r"^\| (.+?) \| [\d., ]+ \| `([^`]+=[^`]+)` \|$", page, re.MULTILINE)
    return {row: options.split() for row, options in rows}


def test_there_are_ablations():
    assert len(ablations()) == 10


@pytest.mark.parametrize("row", ablations())
def test_ablation_is_reachable(row, build):
    prefix = "decode_head.interaction."
    parser = argparse.ArgumentParser()
    parser.add_argument("options", nargs="+", action=DictAction)
    options = parser.parse_args([prefix + option for option in ablations()[row]]).options
    cfg = load("itsa_hrnet18_nyud_40k").model
    cfg = Config(dict(decode_head=cfg.decode_head))
    cfg.merge_from_dict(options | {"decode_head.channels": 16, prefix + "num_points": 2})
    block = build(cfg.decode_head).interaction
    step = block.steps[0]
    for key, value in cfg.decode_head.interaction.items():
        found = {
            "num_levels": step.attention.num_maps // 4,
            "num_points": step.attention.num_points,
            "offset_grad_scale": step.attention.offset_grad_scale,
            "downsample": "conv1x1_pool" if _pools(step) else "conv",
        }
        assert found.get(key, getattr(block, key, None)) == value


def _pools(step: torch.nn.Module) -> bool:
    return any(isinstance(module, torch.nn.MaxPool2d) for module in step.modules())

"""With another default_scope, every command works as plain MMEngine does."""

import pickle
import re
from functools import partial
from pathlib import Path

import cv2
import pytest

from mmlocal.cli.config import load_config
from mmlocal.cli.flops import flops
from mmlocal.cli.print_config import print_config
from mmlocal.cli.testing import config_for_testing
from mmlocal.cli.training import config_for_training
from mmlocal.cli.visualize_attention import list_layers
from mmlocal.errors import UsageError
from mmlocal.libraries import Library, library_of
from tools.copies import run_copy

from .conftest import environment

# A library from outside: registries in the scope "toy", and optionally a Library class.
MODULE = """
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, Registry
from mmengine.structures import BaseDataElement
from torch import nn

TOY_MODELS = Registry("model", parent=MODELS, scope="toy")
TOY_DATASETS = Registry("dataset", parent=DATASETS, scope="toy")
TOY_METRICS = Registry("metric", parent=METRICS, scope="toy")


@TOY_MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        inputs = torch.stack(list(inputs)) if isinstance(inputs, (list, tuple)) else inputs
        means = self.backbone(inputs.float() / 255).mean((2, 3))
        labels = [sample.label for sample in data_samples or ()]
        if mode == "loss":
            return {"loss": nn.functional.cross_entropy(means, torch.tensor(labels))}
        if mode == "predict":
            return [BaseDataElement(label=l, pred=p) for l, p in zip(labels, means.argmax(1))]
        return means


@TOY_DATASETS.register_module()
class ToyDataset(BaseDataset):
    def load_data_list(self):
        return [{"index": index} for index in range(4)]

    def prepare_data(self, index):
        image = torch.full((3, 8, 12), 60 * index, dtype=torch.uint8)
        return {"inputs": image, "data_samples": BaseDataElement(label=index % 2)}


@TOY_METRICS.register_module()
class Share(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [int(sample["label"] == sample["pred"]) for sample in data_samples]

    def compute_metrics(self, results):
        return {"share": sum(results) / len(results)}
"""
OBJECT = """
from mmlocal.libraries import Library, register_library


@register_library
class Toy(Library):
    name = "toy"

    def default_shape(self, cfg):
        return 20, 30

    def complete_loader(self, loader, training):
        loader.setdefault("drop_last", training)
"""
CONFIG = """
default_scope = "toy"
custom_imports = dict(imports=["MODULE"])
model = dict(type="ToyModel")
loader = dict(batch_size=2, sampler=dict(type="DefaultSampler", shuffle=False),
              dataset=dict(type="ToyDataset"))
train_dataloader = val_dataloader = test_dataloader = loader
val_evaluator = test_evaluator = dict(type="Share")
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1))
"""


@pytest.fixture(scope="module", params=["toy_plain", "toy_library"])
def toy(request, tmp_path_factory) -> tuple[Path, bool]:
    """A config, and whether its module registers a library."""
    folder = tmp_path_factory.mktemp(request.param)
    registers = request.param == "toy_library"
    (folder / f"{request.param}.py").write_text(MODULE + (OBJECT if registers else ""))
    (folder / "toy.py").write_text(CONFIG.replace("MODULE", request.param))
    return folder / "toy.py", registers


def write_plain(folder: Path, scope: str | None) -> Path:
    """The config does not import its module."""
    (folder / "c.py").write_text(
        f"default_scope = {scope!r}\n" + "\n".join(CONFIG.splitlines()[3:])
    )
    return folder / "c.py"


def succeeds(command: str, config: Path, *arguments: object) -> str:
    env = environment(PYTHONPATH=str(config.parent))
    program = ["mmlocal", command, *map(str, (config, *arguments))]
    result = run_copy(program, config.parent, env, timeout=300)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.mark.slow
def test_every_command(toy):
    config, registers = toy
    folder = config.parent
    assert "Epoch(val) [1][2/2]    share: " in succeeds("train", config, "--work-dir", "run")
    log = succeeds("test", config, "run/epoch_1.pth", "--out", "out.pkl", "--work-dir", "tested")
    assert "share: " in log
    with (folder / "out.pkl").open("rb") as file:
        assert [sample["label"] for sample in pickle.load(file)] == [0, 1, 0, 1]
    assert "(backbone): Conv2d(3, 2" in succeeds("print-config", config, "--graph")
    shape = [] if registers else ["--shape", "20", "30"]
    assert "image       20x30\nparameters  0.00 M (56)" in succeeds("flops", config, *shape)
    succeeds("browse", config, "--not-show", "-o", "shown")
    pictures = sorted((folder / "shown").iterdir())
    assert [cv2.imread(str(path))[0, 0, 0] for path in pictures] == [0, 60, 120, 180]


@pytest.mark.parametrize("scope", [None, "mmengine", "torch"])
def test_plain_mmengine(scope, tmp_path):
    """The name of any package may be the scope."""
    config = write_plain(tmp_path, scope)
    cfg = config_for_training(str(config))
    assert type(library_of(cfg)) is Library
    assert library_of(cfg).name == cfg.default_scope == (scope or "mmengine")
    assert "pin_memory" not in cfg.train_dataloader


@pytest.mark.parametrize("scope", ["mmpoze", "", 5, ["mmdet"]])
def test_scope_that_is_nowhere(scope, tmp_path):
    config = write_plain(tmp_path, scope)
    message = re.escape(f"default_scope={scope!r}, and no package or registry of")
    with pytest.raises(UsageError, match=message):
        load_config(str(config))


def test_config_without_a_model(tmp_path):
    path = tmp_path / "c.py"
    path.write_text('default_scope = "mmengine"')
    for command in (flops, list_layers, partial(print_config, graph=True)):
        with pytest.raises(UsageError, match=r"^the config .*c\.py has no model"):
            command(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "x.json"}, r"^out: predictions are written as \.pkl"),
        ({"show": True}, "^show: a config for mmengine has to set up its visualization hook its"),
        ({"tta": True}, "^tta: mmengine configs must define tta_model and tta_pipeline"),
        ({"interval": 2}, "^interval: applies to mmpretrain configs, this one is for mmengine"),
    ],
)
def test_what_only_a_library_can_tell(arguments, message, tmp_path):
    config = write_plain(tmp_path, "mmengine")
    with pytest.raises(UsageError, match=message):
        config_for_testing(str(config), "https://host/x.pth", **arguments)

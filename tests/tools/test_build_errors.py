"""A mistake in a part of the config gives one line with the key of this part."""

import inspect
import json
import re
import sys

import pytest
from mmengine.registry import build_from_cfg, build_scheduler_from_cfg
from mmengine.runner import BaseLoop, Runner

from mmlocal.cli import building
from mmlocal.cli.config import load_config
from mmlocal.cli.print_config import print_config
from mmlocal.cli.tool import run_tool
from mmlocal.cli.training import config_for_training
from mmlocal.errors import UsageError

from .conftest import TOOLS, load_tool, start, write_config

# Parts of a model: library, options, and how the message starts.
MODELS = [
    ("mmdet", ["model.type=Foo"], "model: Foo is not in the mmdet::model registry"),
    ("mmdet", ["model.backbone.type=ResNot"], "model.backbone = {.*ResNot is not in"),
    ("mmdet", ["model.backbone.type=ELSASwin"], "model.backbone = {.*name is mmlocal.ELSASwin"),
    ("mmdet", ["model.backbone.foo=1"], "model.backbone.foo = 1: .*'foo'"),
    ("mmdet", ["model.backbone.depth=17"], "model.backbone = .*invalid depth 17"),
    ("mmdet", ["model.backbone.norm_cfg.type=XBN"], "model.backbone.norm_cfg .*'XBN'"),
    ("mmdet", ["model.bbox_head.anchor_generator.foo=1"], "model.bbox_head.anchor_generator.foo ="),
    ("mmdet", ["model.train_cfg.assigner.type=Foo"], "model.train_cfg.assigner = {.*Foo is not in"),
    (
        "mmpretrain",
        [f"model.backbone.{x}" for x in ("_delete_=True", "type=mmlocal.QnAViT", "arch=tinyy")],
        "model.backbone.arch = 'tinyy': .*arch must be",
    ),
]
# Other parts of a run: library, options, and how the message starts.
CASES = {
    "weights": (
        "mmpretrain",
        ["model.backbone.init_cfg.type=Pretrained", "model.backbone.init_cfg.checkpoint=no.pth"],
        r"model.backbone.init_cfg.checkpoint = 'no\.pth': .*can not be found",
    ),
    "rate": (
        "mmpretrain",
        ["optim_wrapper.optimizer.lr=fast"],
        "optim_wrapper.optimizer = {'type': 'SGD', 'lr': 'fast'}: ",
    ),
    "optimizer": (
        "mmpretrain",
        ["optim_wrapper.optimizer.type=Sdg"],
        "optim_wrapper.optimizer = .*: no class of the name 'Sdg' is known",
    ),
    "schedule": (
        "mmpretrain",
        ["param_scheduler.type=LinearLR", "param_scheduler.foo=1"],
        "param_scheduler.foo = 1: ",
    ),
    "sampler": (
        "mmpretrain",
        ["train_dataloader.sampler.type=Foo"],
        "train_dataloader.sampler = {.*: Foo is not in the mmpretrain::data sampler registry",
    ),
    "transform": (
        "mmdet",
        ["val_dataloader.dataset.pipeline.2.scalee=3"],
        "val_dataloader.dataset.pipeline.2.scalee = 3: ",
    ),
    "loader": ("mmpretrain", ["train_dataloader.foo=1"], "train_dataloader.foo = 1: "),
    "metric": (
        "mmdet",
        ["val_evaluator.metric=boxes"],
        "val_evaluator.metric = 'boxes': .*should be one of 'bbox'",
    ),
    "hook": ("mmpretrain", ["default_hooks.checkpoint.type=Foo"], "default_hooks.checkpoint = {"),
    "visualizer": ("mmpretrain", ["visualizer.foo=1"], "visualizer.foo = 1: "),
    "loop": ("mmpretrain", ["train_cfg.foo=1"], "train_cfg.foo = 1: "),
    "seed": ("mmpretrain", ["randomness.foo=1"], "randomness.foo = 1: "),
}

# These run in a process of their own, because a runner leaves loggers and scopes behind.
_SCRIPT = """
import json, sys
from mmlocal.errors import UsageError
from mmlocal.cli.training import run_training
sys.path.insert(0, {folder!r})
from conftest import load_tool

messages = {{}}
for name, arguments in json.loads({cases!r}).items():
    try:
        run_training(**vars(load_tool("train").parse_args(arguments)))
    except UsageError as error:
        messages[name] = str(error)
    except BaseException as error:
        messages[name] = repr(error)
json.dump(messages, open("messages.json", "w"))
"""


@pytest.fixture(scope="module")
def messages(data, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("builds")
    configs = {
        library: write_config(library, data, folder / f"tiny_{library}.py")
        for library in ("mmdet", "mmpretrain")
    }
    # MMEngine keeps loggers by the name of an experiment, which is the time in seconds by default.
    cases = {
        name: [str(configs[library]), "--cfg-options", f"experiment_name={name}", *options]
        for name, (library, options, _) in CASES.items()
    }
    cases["bug"] = [str(configs["mmpretrain"]), "--cfg-options", "model.head.in_channels=63"]
    script = folder / "script.py"
    here = str(TOOLS.parent / "tests/tools")
    script.write_text(_SCRIPT.format(folder=here, cases=json.dumps(cases)))
    done = start(script, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "messages.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_message(name, messages):
    assert re.match(f"config key {CASES[name][2]}", messages[name]), messages[name]
    assert "\n" not in messages[name]
    assert "--traceback" in messages[name]


@pytest.mark.parametrize(("library", "options", "expected"), MODELS)
def test_parts_of_a_model(library, options, expected, data, tmp_path):
    config = write_config(library, data, tmp_path / "c.py")
    args = [str(config), "--graph", "--cfg-options", *options]
    with pytest.raises(UsageError, match=f"^config key {expected}") as caught:
        print_config(**vars(load_tool("print_config").parse_args(args)))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_bugs_pass(messages):
    """An error in a training step may have any cause, so it is not reported as a mistake."""
    assert messages["bug"].startswith("RuntimeError('mat1 and mat2 shapes cannot be multiplied")


def test_traceback_on_request(data, tmp_path, monkeypatch, capsys):
    config = write_config("mmpretrain", data, tmp_path / "c.py")
    argv = [str(config), "--graph", "--traceback", "--cfg-options", "model.type=Foo"]
    tool = load_tool("print_config")
    for wanted in (False, True):
        given = [word for word in argv if wanted or word != "--traceback"]
        monkeypatch.setattr(sys, "argv", ["print_config.py", *given])
        with pytest.raises(SystemExit, match="2"):
            run_tool(lambda: print_config(**vars(tool.parse_args())))
        err = capsys.readouterr().err
        assert ("in build_from_cfg" in err) == wanted
        assert err.splitlines()[-1].startswith("error: config key model")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train_cfg.max_iters=0", "train_cfg.max_iters must be .* at least 1, got 0"),
        ("train_cfg.max_iters=-5", "train_cfg.max_iters must be .* at least 1, got -5"),
        ("train_cfg.max_epochs=many", "train_cfg.max_epochs must be .*, got 'many'"),
        ("train_cfg.val_interval=0", "train_cfg.val_interval must be .* at least 1"),
        ("train_dataloader.batch_size=0", "train_dataloader.batch_size must be .* at least 1"),
        ("train_dataloader.batch_size=1.5", "train_dataloader.batch_size .*, got 1.5"),
        ("val_dataloader.num_workers=-1", "val_dataloader.num_workers must be .* at least 0"),
        ("optim_wrapper=None", "has no optim_wrapper"),
        ("val_evaluator=None", "has no val_evaluator"),
        ("model=None", "has no model"),
    ],
)
def test_numbers_and_parts(option, message, config):
    args = load_tool("train").parse_args([str(config), "--cfg-options", option])
    with pytest.raises(UsageError, match=message):
        config_for_training(**vars(args))


def test_options_that_contradict_each_other(config):
    with pytest.raises(UsageError, match=r"^cfg_options: does not fit"):
        load_config(str(config), {"model.backbone": [1], "model.backbone.0.x": 2})


def test_names_by_which_a_traceback_is_read():
    """The error reports rely on these names, because MMEngine 0.10.12 has no public way."""
    for method in (*building._PARTS, *building._PARTS_OF_LOOPS):
        assert callable(getattr(Runner, method)), method
    for builder in (build_from_cfg, build_scheduler_from_cfg):
        assert builder.__code__ in building._BUILDERS
        assert next(iter(inspect.signature(builder).parameters)) == "cfg"
    assert callable(BaseLoop.run)

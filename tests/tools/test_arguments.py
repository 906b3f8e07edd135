"""Each flag changes the config as it should, for each of the three libraries."""

import os
import pickle
import sys
import zipfile

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope

from mmlocal.cli import config as config_module
from mmlocal.cli import runner, training
from mmlocal.cli.config import load_config
from mmlocal.cli.print_config import print_config
from mmlocal.cli.testing import config_for_testing
from mmlocal.cli.training import config_for_training
from mmlocal.errors import UsageError

from .conftest import LIBRARIES, TOOLS, load_tool, start, write_config


def cfg_for_training(config, *flags):
    return config_for_training(**vars(load_tool("train").parse_args([str(config), *flags])))


def cfg_for_testing(config, *flags):
    checkpoint = config.with_suffix(".pth")
    torch.save({}, checkpoint)
    args = load_tool("test").parse_args([str(config), str(checkpoint), *flags])
    return config_for_testing(**vars(args))


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["train", "test", "print_config", "browse_dataset"])
def test_help(tool, tmp_path):
    result = start(TOOLS / f"{tool}.py", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--cfg-options" in result.stdout


@pytest.mark.parametrize(
    ("script", "usage"),
    [
        ("dist_train.sh", "CONFIG GPUS"),
        ("dist_test.sh", "CONFIG CHECKPOINT GPUS"),
        ("slurm_train.sh", "PARTITION JOB_NAME CONFIG WORK_DIR"),
        ("slurm_test.sh", "PARTITION JOB_NAME CONFIG CHECKPOINT"),
    ],
)
def test_shell_scripts_say_what_they_need(script, usage, tmp_path):
    result = start("bash", TOOLS / script, "one", cwd=tmp_path)
    assert result.returncode == 2
    assert usage in result.stderr


@pytest.mark.parametrize("kind", ["train", "test"])
def test_slurm_scripts_pass_everything_on(kind, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    result = start(
        *("bash", TOOLS / f"slurm_{kind}.sh", "gpu", "job", "a b.py", "other", "--amp"),
        cwd=tmp_path,
        PATH=f"{tmp_path}:/usr/bin:/bin",
        GPUS="16",
        SRUN_ARGS="--time=1 --mem=2",
    )
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()
    assert {"--partition=gpu", "--ntasks=16", "--time=1", "--mem=2", "a b.py", "other"} < {*words}
    assert words[-3:] == ["--launcher", "slurm", "--amp"]


# ------------------------------------------------------------------------------- every library


def test_nothing_changes_without_flags(config, library):
    cfg = cfg_for_training(config)
    assert cfg.work_dir == f"work_dirs/tiny_{library}"
    assert cfg.launcher == "none"
    assert not cfg.get("resume")
    assert cfg.optim_wrapper.type == "OptimWrapper"
    assert cfg.val_cfg is not None


def test_work_dir_of_flag_wins_over_config(config, tmp_path):
    config.write_text(config.read_text() + '\nwork_dir = "of_config"\n')
    assert cfg_for_training(config).work_dir == "of_config"
    assert cfg_for_training(config, "--work-dir", "of_flag").work_dir == "of_flag"


def test_cfg_options(config):
    cfg = cfg_for_training(
        *(config, "--cfg-options", "train_cfg.max_iters=7", "optim_wrapper.optimizer.lr=0.5"),
        *("train_dataloader.dataset.pipeline.0.type=Other", "extra=[(1,2),(3,4)]"),
    )
    assert cfg.train_cfg.max_iters == 7
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.train_dataloader.dataset.pipeline[0].type == "Other"
    assert cfg.extra == [(1, 2), (3, 4)]


def test_resume(config, tmp_path):
    cfg = cfg_for_training(config, "--resume", "--cfg-options", "load_from=https://host/x.pth")
    assert cfg.resume is True
    assert cfg.load_from is None
    checkpoint = tmp_path / "iter_1.pth"
    torch.save({}, checkpoint)
    cfg = cfg_for_training(config, "--resume", str(checkpoint))
    assert cfg.resume is True
    assert cfg.load_from == str(checkpoint)


def test_a_sharded_run_starts_but_does_not_resume(config, tmp_path):
    sharded = ["--resume", "--work-dir", str(tmp_path), "--cfg-options"]
    sharded += ["runner_type=FlexibleRunner", "strategy.type=FSDPStrategy"]
    assert cfg_for_training(config, *sharded).resume is True  # the first start of a run
    torch.save({}, tmp_path / "iter_1.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_1.pth"))
    with pytest.raises(UsageError, match="FSDPStrategy cannot resume a run"):
        cfg_for_training(config, *sharded)


def test_resume_from_a_damaged_run(config, tmp_path):
    flags = ["--work-dir", str(tmp_path / "run"), "--resume"]
    assert cfg_for_training(config, *flags).resume is True  # the first start of a run
    folder = tmp_path / "run"
    folder.mkdir()
    for number in (1, 2):
        torch.save({}, folder / f"iter_{number}.pth")
        os.utime(folder / f"iter_{number}.pth", (number, number))
    last = folder / "iter_3.pth"
    last.write_bytes((folder / "iter_2.pth").read_bytes()[:99])
    for content, reason in (("", "empty"), ("no.pth", "'no.pth' is not a file"), (last, "damaged")):
        (folder / "last_checkpoint").write_text(str(content))
        with pytest.raises(UsageError, match=rf"run/last_checkpoint .*{reason}") as error:
            cfg_for_training(config, *flags)
        assert f"{folder / 'iter_2.pth'} or {folder / 'iter_1.pth'}" in str(error.value)
    assert str(error.value).count(str(last)) == 1, "offered, though damaged"
    (folder / "last_checkpoint").write_text(str(folder / "iter_2.pth"))
    assert cfg_for_training(config, *flags).load_from is None


def test_resume_a_run_that_was_moved(config, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({}, folder / "epoch_1.pth")
    for gone in ("/gone/work_dirs/run/epoch_1.pth", "work_dirs/run/epoch_1.pth"):
        (folder / "last_checkpoint").write_text(gone)
        cfg = cfg_for_training(config, "--work-dir", str(folder), "--resume")
        assert cfg.resume is True
        assert cfg.load_from == str(folder / "epoch_1.pth")
        assert f"{gone} of {folder / 'last_checkpoint'} is gone" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["picture", "text", "archive", "truncated", "other pickle"])
def test_what_is_no_checkpoint(kind, config, tmp_path):
    """Such a file is not a checkpoint, so the message must not advise to turn safety off."""
    path = tmp_path / "cat.png"
    if kind == "picture":
        cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8))
    elif kind == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("cat.txt", "miaow")
    elif kind == "truncated":
        torch.save({"state_dict": {"a": torch.zeros(9)}}, path)
        path.write_bytes(path.read_bytes()[:-99])
    else:
        path.write_bytes(b"a cat" if kind == "text" else pickle.dumps({"a": 1}, protocol=4))
    with pytest.raises(UsageError, match=r"cat\.png") as error:
        cfg_for_training(config, "--resume", str(path))
    assert "TORCH_FORCE" not in str(error.value)


def test_checkpoint_with_foreign_objects(config, tmp_path):
    """PyTorch has two formats of checkpoints."""
    for zipped in (True, False):
        path = tmp_path / "mine.pth"
        torch.save({"state_dict": {}, "path": path}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UsageError, match=r"refers to pathlib.*If you trust it, set TORCH"):
            cfg_for_training(config, "--resume", str(path))


def test_amp_replaces_the_optim_wrapper(config, monkeypatch):
    monkeypatch.setattr(training, "get_device", lambda: "cuda")
    cfg = cfg_for_training(config, "--amp")
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert cfg.optim_wrapper.loss_scale == "dynamic"
    cfg = cfg_for_training(config, "--amp", "--cfg-options", "optim_wrapper.loss_scale=512")
    assert cfg.optim_wrapper.loss_scale == 512
    with pytest.raises(UsageError, match=r"^amp: .*ApexOptimWrapper"):
        cfg_for_training(config, "--amp", "--cfg-options", "optim_wrapper.type=ApexOptimWrapper")


NEW_STYLE = """
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch.optim import SGD
from {library}.models import {model}

model = dict(type={model})
train_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(type="Unknown"))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(type={wrapper}, optimizer=dict(type=SGD, lr=0.1))
"""


@pytest.mark.parametrize("wrapper", ["OptimWrapper", "AmpOptimWrapper"])
def test_amp_with_classes_for_types(wrapper, library, tmp_path, monkeypatch):
    """Such configs need no default scope."""
    monkeypatch.setattr(training, "get_device", lambda: "cuda")
    models = {"mmdet": "RetinaNet", "mmseg": "EncoderDecoder", "mmpretrain": "ImageClassifier"}
    path = tmp_path / "new_style.py"
    path.write_text(NEW_STYLE.format(library=library, model=models[library], wrapper=wrapper))
    cfg = cfg_for_training(path, "--amp")
    assert cfg.default_scope == library
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert cfg.optim_wrapper.loss_scale == "dynamic"


def test_amp_with_a_scope(config, monkeypatch):
    monkeypatch.setattr(training, "get_device", lambda: "cuda")
    options = ["--cfg-options", "optim_wrapper.type=mmengine.OptimWrapper"]
    assert cfg_for_training(config, "--amp", *options).optim_wrapper.type == "AmpOptimWrapper"


def has_cpu(monkeypatch, fast: bool) -> None:
    """Let there be no GPU, and a CPU with or without instructions for bfloat16."""
    for module in (runner, training):
        monkeypatch.setattr(module, "get_device", lambda: "cpu")
    found = {"avx2": True, "avx512_bf16": fast}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)


def test_amp_without_a_gpu(config, monkeypatch):
    has_cpu(monkeypatch, fast=True)
    gpu = ["optim_wrapper.type=AmpOptimWrapper", "optim_wrapper.loss_scale=dynamic"]
    for options in ([], ["--cfg-options", *gpu, "optim_wrapper.dtype=float16"]):
        cfg = cfg_for_training(config, "--amp", *options)
        assert cfg.optim_wrapper.type == "mmlocal.CPUAmpOptimWrapper"
        assert not {"loss_scale", "dtype"} & {*cfg.optim_wrapper}
    monkeypatch.setattr(training, "get_device", lambda: "mps")
    with pytest.raises(UsageError, match=r"^amp: .*mps"):
        cfg_for_training(config, "--amp")


def test_auto_scale_lr(config):
    assert cfg_for_training(config, "--auto-scale-lr").auto_scale_lr.enable is True
    with pytest.raises(UsageError, match=r"^auto_scale_lr: .*base_batch_size"):
        cfg_for_training(config, "--auto-scale-lr", "--cfg-options", "auto_scale_lr=None")


def test_no_validate(config):
    cfg = cfg_for_training(config, "--no-validate")
    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None


def test_loader_flags(config):
    cfg = cfg_for_training(config, "--no-pin-memory", "--no-persistent-workers")
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.pin_memory is False
        assert loader.persistent_workers is False
    assert cfg_for_testing(config, "--no-pin-memory").test_dataloader.pin_memory is False


@pytest.mark.parametrize("flag", ["--local_rank", "--local-rank"])
def test_local_rank_reaches_mmengine(flag, config, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK")
    cfg_for_training(config, flag, "3", "--launcher", "pytorch")
    assert os.environ["LOCAL_RANK"] == "3"


def test_test_flags(config, monkeypatch):
    has_cpu(monkeypatch, fast=True)
    cfg = cfg_for_testing(config, "--amp", "--work-dir", "there", "--launcher", "pytorch")
    assert cfg.load_from == str(config.with_suffix(".pth"))
    assert cfg.test_cfg.fp16 is True
    assert cfg.work_dir == "there"
    assert cfg.launcher == "pytorch"


def test_amp_is_left_out_on_a_cpu_without_bfloat16(config, monkeypatch, capsys):
    has_cpu(monkeypatch, fast=False)
    gpu = ["optim_wrapper.type=AmpOptimWrapper", "optim_wrapper.loss_scale=dynamic"]
    for options in ([], ["--cfg-options", *gpu]):
        cfg = cfg_for_training(config, "--amp", *options)
        assert cfg.optim_wrapper.type == "OptimWrapper"
        assert "loss_scale" not in cfg.optim_wrapper
        assert "--amp is left out" in capsys.readouterr().err
    assert "fp16" not in cfg_for_testing(config, "--amp").test_cfg
    assert "--amp is left out" in capsys.readouterr().err


def test_tta_of_the_config_is_used(config):
    config.write_text(
        config.read_text()
        + '\ntta_model = dict(type="Mine")\ntta_pipeline = [dict(type="Load"), dict(type="Aug")]\n'
    )
    cfg = cfg_for_testing(config, "--tta")
    assert cfg.model.type == "Mine"
    assert cfg.model.module.backbone.depth == 18
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline] == ["Load", "Aug"]


def test_tta_reaches_a_wrapped_dataset(config):
    text = (
        config.read_text() + "\ninner = dict(type='RepeatDataset', times=1, dataset=dataset('val'))"
    )
    config.write_text(text + "\ntest_dataloader = loader(inner, False)\n")
    assert "TestTimeAug" in str(
        cfg_for_testing(config, "--tta").test_dataloader.dataset.dataset.pipeline
    )


def test_show_needs_the_hook(config):
    with pytest.raises(UsageError, match=r"default_hooks\.visualization"):
        cfg_for_testing(config, "--show", "--cfg-options", "default_hooks.visualization=None")


# ------------------------------------------------------------------------------- one library


@pytest.fixture
def configs(data, tmp_path):
    return {
        library: write_config(library, data, tmp_path / f"{library}.py") for library in LIBRARIES
    }


def test_only_mmpretrain_gets_loader_defaults(configs):
    options = ["--cfg-options", "train_dataloader.num_workers=2"]
    loader = cfg_for_training(configs["mmpretrain"], *options).train_dataloader
    assert loader.pin_memory is True
    assert loader.persistent_workers is True
    assert loader.collate_fn == {"type": "default_collate"}
    # torch refuses persistent workers where there are none
    assert cfg_for_training(configs["mmpretrain"]).train_dataloader.persistent_workers is False
    own = "train_dataloader.pin_memory=False"
    assert (
        cfg_for_training(configs["mmpretrain"], *options, own).train_dataloader.pin_memory is False
    )
    for library in ("mmdet", "mmseg"):
        assert not {"pin_memory", "collate_fn"} & {
            *cfg_for_training(configs[library]).train_dataloader
        }


def test_default_tta(configs):
    cfg = cfg_for_testing(configs["mmdet"], "--tta")
    assert cfg.model.type == "DetTTAModel"
    assert cfg.model.module.type == "RetinaNet"
    step = cfg.test_dataloader.dataset.pipeline[-1]
    assert step.type == "TestTimeAug"
    assert len(step.transforms[0]) == 2
    assert "flip_direction" in step.transforms[1][0].meta_keys

    cfg = cfg_for_testing(configs["mmpretrain"], "--tta")
    assert cfg.model.type == "mmpretrain.AverageClsScoreTTA"
    assert cfg.test_dataloader.dataset.pipeline[-1].transforms[1][0].type == "PackInputs"

    no_tta = configs["mmseg"].read_text().replace("tta_model", "unused")
    for none in ("", "\ntta_model = None\n"):
        configs["mmseg"].write_text(no_tta + none)
        with pytest.raises(UsageError, match=r"^tta: .*tta_model"):
            cfg_for_testing(configs["mmseg"], "--tta")


def test_pretrained_weights_as_older_configs_have_them(configs):
    options = {"model.pretrained": "weights.pth"}
    backbone = {"model.backbone.type": "mmlocal.ELSASwin"}
    for cfg in (
        load_config(str(configs["mmdet"]), options),
        load_config(str(configs["mmseg"]), options | backbone),
    ):
        assert "pretrained" not in cfg.model
        assert cfg.model.backbone.init_cfg == {"type": "Pretrained", "checkpoint": "weights.pth"}
    none = load_config(str(configs["mmdet"]), {"model.pretrained": None}).model
    assert "pretrained" not in none
    assert "init_cfg" not in none.backbone
    # mmseg's own backbones know the argument; in mmpretrain it means the whole model.
    assert load_config(str(configs["mmseg"]), options).model.pretrained == "weights.pth"
    assert load_config(str(configs["mmpretrain"]), options).model.pretrained == "weights.pth"
    with pytest.raises(UsageError, match=r"model\.pretrained must be the path .*, got True"):
        load_config(str(configs["mmdet"]), {"model.pretrained": True})
    other = {"model.backbone.init_cfg.type": "Normal"}
    with pytest.raises(UsageError, match=r"model\.pretrained=weights\.pth and .*init_cfg both"):
        load_config(str(configs["mmdet"]), options | other)


UNLABELLED = """
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="PackSegInputs")]
test_dataloader = loader(
    dict(
        type="BaseSegDataset",
        metainfo=dict(classes=("a", "b", "c")),
        data_root="{root}/seg",
        data_prefix=dict(img_path="images/val"),
        pipeline=test_pipeline,
    ),
    False,
)
test_evaluator = dict(type="IoUMetric", format_only=True, output_dir="predictions")
"""


def test_tta_of_images_without_labels(configs, data):
    """Users without labels send their predictions to a test server."""
    path = configs["mmseg"]
    path.write_text(path.read_text() + UNLABELLED.replace("{root}", data.as_posix()))
    cfg = cfg_for_testing(path, "--tta")
    load, augment = cfg.test_dataloader.dataset.pipeline
    assert load.type == "LoadImageFromFile"
    kinds = [[step.type for step in branch] for branch in augment.transforms]
    assert kinds == [["RandomFlip", "RandomFlip"], ["PackSegInputs"]]
    with DefaultScope.overwrite_default_scope("mmseg"):
        assert len(DATASETS.build(cfg.test_dataloader.dataset)[0]["inputs"]) == 2


def test_show_dir(configs):
    hook = cfg_for_testing(configs["mmdet"], "--show-dir", "pictures").default_hooks.visualization
    assert hook.draw is True
    assert hook.test_out_dir == "pictures"
    assert not hook.get("show")

    cfg = cfg_for_testing(configs["mmseg"], "--show-dir", "pictures")
    assert cfg.default_hooks.visualization.draw is True
    assert cfg.visualizer.save_dir == "pictures"

    flags = ["--show-dir", "pictures", "--interval", "3"]
    hook = cfg_for_testing(configs["mmpretrain"], *flags).default_hooks.visualization
    assert hook.enable is True
    assert hook.out_dir == "pictures"
    assert hook.interval == 3


def test_show(configs):
    for library in LIBRARIES:
        flags = ["--show", "--wait-time", "0.5"]
        hook = cfg_for_testing(configs[library], *flags).default_hooks.visualization
        assert hook.show is True
        assert hook.wait_time == 0.5


def test_out_of_mmseg_is_a_setting_of_the_metric(configs, tmp_path):
    cfg = cfg_for_testing(configs["mmseg"], "--out", "predictions")
    assert cfg.test_evaluator.output_dir == "predictions"
    assert cfg.test_evaluator.keep_results is True
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^out: .*folder"):
        cfg_for_testing(configs["mmseg"], "--out", str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("library", "flags", "message"),
    [
        ("mmdet", ["--out", "x.json"], r"^out: .*\.pkl"),
        ("mmpretrain", ["--out", "x.json"], r"^out: .*\.pkl"),
        ("mmpretrain", ["--out", "x.txt", "--out-item", "metrics"], r"^out: .*\.json"),
        ("mmpretrain", ["--out-item", "pred"], "^out_item: .*--out FILE"),
        ("mmdet", ["--out", "x.pkl", "--out-item", "pred"], "^out_item: .*mmpretrain.*mmdet"),
        ("mmseg", ["--out", "x", "--out-item", "pred"], "^out_item: .*mmpretrain.*mmseg"),
        ("mmdet", ["--interval", "2"], "^interval: .*mmpretrain.*mmdet"),
        ("mmseg", ["--interval", "2"], "^interval: .*mmpretrain.*mmseg"),
    ],
)
def test_output_flags_that_do_not_apply(configs, library, flags, message):
    with pytest.raises(UsageError, match=message):
        cfg_for_testing(configs[library], *flags)


# ------------------------------------------------------------------------------- loading


def test_config_by_name(monkeypatch, data, tmp_path):
    path = write_config("mmseg", data, tmp_path / "known_name.py")
    monkeypatch.setattr(config_module, "config_path", lambda name: str(path))
    assert load_config("known_name").default_scope == "mmseg"
    with pytest.raises(UsageError, match=r"elsewhere/known_name\.py.*did you mean `known_name`"):
        load_config("elsewhere/known_name.py")


def test_config_that_cannot_be_used(tmp_path):
    with pytest.raises(UsageError, match=r"no/such\.py.*does not exist"):
        load_config("no/such.py")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(str(tmp_path / "a.txt"))
    (tmp_path / "b.py").write_text('default_scope = "mmpose"')
    with pytest.raises(UsageError, match=r"mmpose.*mmdet, mmseg, mmpretrain"):
        load_config(str(tmp_path / "b.py"))
    (tmp_path / "c.py").write_text('default_scope = "mmdet"\nsteps = [1]')
    with pytest.raises(UsageError, match=r"^cfg_options: "):
        load_config(str(tmp_path / "c.py"), {"steps.4.x": 1})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("default_scope = 'mmdet'\nmodel = dict(\n", r"c\.py, line 2: SyntaxError: '\(' was never"),
        ("_base_ = ['bad.py']", r"bad\.py, line 2: NameError: name 'x' is not defined"),
        ("_base_ = 'child.py'", r"broken\.py, line 2: SyntaxError: invalid syntax"),
        ("_base_ = ['a.py', 'b.py']", "KeyError: Duplicate key .*'lr'"),
        ("_base_ = 'a.py'\nrate = 2 * _base_.rate", r"line 2: .*Error: .*rate"),
        ("_base_ = 'a.py'\nmodel = dict(lr={{_base_.rate}})", "Error: .*rate"),
        ("_base_ = 'no.py'", "FileNotFoundError.*no.py"),
        ("_base_ = 'mmlocal::mmdet/a.py'", r"write _base_ = __import__\(.mmlocal.\).config_path"),
        ("custom_imports = dict(imports='no_such_module')", "No module named 'no_such_module'"),
    ],
)
def test_config_with_a_mistake(config, message, tmp_path):
    (tmp_path / "a.py").write_text("lr = 1")
    (tmp_path / "b.py").write_text("lr = 2")
    (tmp_path / "bad.py").write_text("\nlr = x")
    (tmp_path / "child.py").write_text("_base_ = ['a.py', 'broken.py']")
    (tmp_path / "broken.py").write_text("rate = 1\nrate = = 2")
    (tmp_path / "c.py").write_text(config)
    with pytest.raises(UsageError, match=rf"c\.py' cannot be read: .*{message}") as error:
        load_config(str(tmp_path / "c.py"))
    assert "\n" not in str(error.value)


def test_modules_in_the_working_directory(tmp_path, monkeypatch, capsys):
    """A command finds them. A function leaves the search path of the process alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_config.py").touch()
    (tmp_path / "c.py").write_text("custom_imports = dict(imports='beside_the_config')")
    before = list(sys.path)
    with pytest.raises(UsageError, match="No module named 'beside_the_config'"):
        load_config("c.py")
    assert sys.path == before
    load_tool("print_config").main(["c.py"])
    assert "beside_the_config" in capsys.readouterr().out


def test_config_that_cannot_be_saved(config, tmp_path):
    (tmp_path / "file").touch()
    args = load_tool("print_config").parse_args(
        [str(config), "--save-path", str(tmp_path / "file/c.py")]
    )
    with pytest.raises(UsageError, match=r"^save_path: cannot be written: .*file"):
        print_config(**vars(args))


def test_missing_library(config, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    reason = f"this is a config for {library}. {library} cannot run here: {library} is not"
    mend = r"\. Mend it with\n    pip install onedl-mm"
    with pytest.raises(UsageError, match=f"{reason} installed{mend}"):
        cfg_for_training(config)


def test_library_without_its_compiled_ops(configs, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)
    for library in ("mmdet", "mmseg"):
        with pytest.raises(UsageError, match=r"compiled ops .*\n    pip install .*onedl-mmcv$"):
            cfg_for_training(configs[library])
    cfg_for_training(configs["mmpretrain"])

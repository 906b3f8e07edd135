"""From a command line to a run, for mmdet, mmseg and mmpretrain alike.

The three libraries' own ``tools/train.py`` and ``tools/test.py`` differ in flags and in what some
flags mean. The task of a config is its ``default_scope``; a flag means here what it means in the
tool of that library. Building and running is left to MMEngine.
"""

import argparse
import os
import os.path as osp
import pickle
import traceback
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import mmengine
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.evaluator import DumpResults
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner

from mmlocal import config_path
from mmlocal.cli.building import build_errors, type_name
from mmlocal.cli.data import check_annotations, check_data
from mmlocal.cli.resume import check_checkpoint, find_last_checkpoint
from mmlocal.cli.settings import accept_pretrained, check_settings, infer_scope
from mmlocal.cli.tool import warn
from mmlocal.cli.tta import augment_test
from mmlocal.engine.batches import ONE_VALUE, CheckBatchHook
from mmlocal.engine.weights import CheckWeightsHook
from mmlocal.errors import UsageError
from mmlocal.libraries import LIBRARIES


def load_config(config: str, cfg_options: dict | None = None) -> Config:
    """Read a config by path, or by the name of a config that ships with mmlocal.

    Args:
        config: path of a config file, or a bare name such as ``elsa_swin_t_maskrcnn_1x``.
        cfg_options: settings to merge, with dotted keys.

    Raises:
        UsageError: no such config, unreadable config, a ``default_scope`` that is none of the three
            tasks, or options that do not fit the config.
    """
    name = osp.splitext(osp.basename(config))[0]
    path = config
    if not osp.isfile(path):
        try:
            path = config_path(name)
        except ValueError as error:
            raise UsageError(f"config {config!r} does not exist; {error}") from error
        if name != config:
            raise UsageError(f"config {config!r} does not exist; did you mean `{name}`, at {path}?")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program: it can fail in any way
        reason = _where_and_why(error)
        if "does not support to load mmlocal" in reason:  # MMEngine has a table of libraries
            reason += '; write _base_ = __import__("mmlocal").config_path("NAME") instead'
        raise UsageError(f"config {config!r} cannot be read: {reason}") from error
    try:
        cfg.merge_from_dict(cfg_options or {})
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UsageError(f"--cfg-options does not fit the config: {error}") from error
    infer_scope(cfg, tuple(LIBRARIES))
    if cfg.get("default_scope") not in LIBRARIES:
        raise UsageError(
            f"config {config!r} has default_scope={cfg.get('default_scope')!r}; "
            f"expected one of {', '.join(LIBRARIES)}"
        )
    accept_pretrained(cfg)
    return cfg


def _where_and_why(error: Exception) -> str:
    """File and line of an error in a config or one of its bases, if known, and its first cause."""
    frames = list(traceback.walk_tb(error.__traceback__))
    readers = ("_file2dict", "_is_lazy_import")  # of MMEngine
    files = [f.f_locals["filename"] for f, _ in frames if f.f_code.co_name in readers]
    lines = [line for f, line in frames if files and f.f_code.co_filename == files[-1]]
    if files and isinstance(error, SyntaxError) and error.filename in ("<unknown>", files[-1]):
        lines.append(error.lineno)
    while isinstance(error, ImportError) and (cause := error.__cause__ or error.__context__):
        error = cause
    quoted = isinstance(error, (KeyError, SyntaxError)) and error.args
    reason = str(error.args[0] if quoted else error).partition("\n")[0]
    where = f"{files[-1]}, line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {reason}"


def config_for_training(args: argparse.Namespace) -> Config:
    """Config of a training run, with all flags of ``tools/train.py`` applied and checked.

    Raises:
        UsageError: whatever the user can mend: a missing config, library, data set or checkpoint, a
            flag that does not apply.
    """
    cfg = _common_config(args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    # An empty dict asks for the usual validation.
    phases = ["train", "val"] if cfg.get("val_cfg") is not None else ["train"]
    check_settings(cfg, phases)
    if args.amp:
        _train_with_amp(cfg)
    if args.auto_scale_lr:
        if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
            raise UsageError(
                "--auto-scale-lr: the config does not say for which batch size its learning rate "
                "is; add auto_scale_lr=dict(base_batch_size=...)"
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if cfg.get("resume") and not cfg.get("load_from"):
        cfg.load_from = find_last_checkpoint(cfg.work_dir)
    check_checkpoint(cfg.get("load_from"), "checkpoint to start from")
    for loader in _loaders(cfg, ("train", "val", "test")):
        if cfg.default_scope == "mmpretrain":
            loader.setdefault("persistent_workers", loader.get("num_workers", 0) > 0)
        if args.no_persistent_workers:
            loader.persistent_workers = False
    _check_data(cfg, args, phases)
    return cfg


def run_training(args: argparse.Namespace) -> None:
    """Train as the command line of ``tools/train.py`` says; see :func:`config_for_training`."""
    cfg = config_for_training(args)
    runner = _build_runner(cfg, whole=bool(cfg.get("resume")))
    _run(runner.train, cfg)


def config_for_testing(args: argparse.Namespace) -> Config:
    """Config of a test run, with the flags of ``tools/test.py`` applied and checked.

    ``--out`` is only checked here, except for mmseg, where it is a setting of the metric.

    Raises:
        UsageError: as :func:`config_for_training`.
    """
    cfg = _common_config(args)
    task = cfg.default_scope
    _check_output_flags(args, task)
    check_checkpoint(args.checkpoint, "checkpoint")
    cfg.load_from = args.checkpoint
    check_settings(cfg, ["test"])
    _check_data(cfg, args, ["test"])
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        _show_predictions(cfg, args)
    if args.tta:
        augment_test(cfg)
    if args.out and task == "mmseg":
        evaluator = cfg.test_evaluator
        for metric in evaluator if isinstance(evaluator, list) else [evaluator]:
            metric.update(output_dir=args.out, keep_results=True)
    return cfg


def run_testing(args: argparse.Namespace) -> None:
    """Test as the command line of ``tools/test.py`` says; see :func:`config_for_testing`."""
    cfg = config_for_testing(args)
    runner = _build_runner(cfg, whole=True)
    with build_errors(cfg):
        _dump_predictions(runner, cfg, args)
    metrics = _run(runner.test, cfg)
    if args.out_item == "metrics":
        master_only(mmengine.dump)(metrics, args.out)


def _dump_predictions(runner: Runner, cfg: Config, args: argparse.Namespace) -> None:
    if args.out and cfg.default_scope == "mmdet":
        from mmdet.evaluation import DumpDetResults  # also packs the masks

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    if args.out and cfg.default_scope == "mmpretrain" and args.out_item != "metrics":
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))


def print_config(args: argparse.Namespace) -> None:
    """Print the merged config (or, with ``--graph``, the model), and save it if asked to.

    Raises:
        UsageError: missing config, library of its task (``--graph``), or a ``--save-path`` with a
            suffix that MMEngine does not write or where nothing can be written.
    """
    if args.save_path and not args.save_path.endswith((".py", ".json", ".yml", ".yaml")):
        raise UsageError(
            f"--save-path must end in .py, .json, .yml or .yaml, got {args.save_path!r}"
        )
    cfg = load_config(args.config, args.cfg_options)
    if args.graph:
        require_library(cfg.default_scope)
        init_default_scope(cfg.default_scope)
        with build_errors(cfg):
            model = MODELS.build(deepcopy(cfg.model))  # building adds to the config
        print(model)
    else:
        print(cfg.pretty_text)
    if args.save_path:
        try:
            os.makedirs(osp.dirname(osp.abspath(args.save_path)), exist_ok=True)
            cfg.dump(args.save_path)
        except OSError as error:
            raise UsageError(f"--save-path cannot be written: {error}") from error


def require_library(task: str) -> None:
    """Raise ``UsageError`` unless configs of ``task`` can run here; it says what mends that."""
    LIBRARIES[task].require()


def _common_config(args: argparse.Namespace) -> Config:
    """The part of the command line that train and test share."""
    cfg = load_config(args.config, args.cfg_options)
    require_library(cfg.default_scope)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir or not cfg.get("work_dir"):
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = args.work_dir or osp.join("work_dirs", name)
    for loader in _loaders(cfg, ("train", "val", "test")):
        if cfg.default_scope == "mmpretrain":  # its configs rely on these defaults of its tools
            loader.setdefault("pin_memory", True)
            loader.setdefault("collate_fn", ConfigDict(type="default_collate"))
        if args.no_pin_memory:
            loader.pin_memory = False
    return cfg


def _check_data(cfg: Config, args: argparse.Namespace, phases: list[str]) -> None:
    if args.no_data_check:
        check_data(cfg, phases)
        return
    try:
        check_data(cfg, phases)
        check_annotations(cfg, phases)
    except UsageError:
        raise
    except Exception as error:  # settings of a type that nobody expects: building names them
        warn(f"the data was not checked: {type(error).__name__}: {error}")


def _loaders(cfg: Config, phases: tuple[str, ...]) -> list[ConfigDict]:
    loaders = (cfg.get(f"{phase}_dataloader") for phase in phases)
    return [loader for loader in loaders if loader is not None]


def _train_with_amp(cfg: Config) -> None:
    kind = type_name(cfg.optim_wrapper.get("type", "OptimWrapper"))
    if kind not in ("OptimWrapper", "AmpOptimWrapper"):
        raise UsageError(f"--amp can only replace the optim_wrapper type OptimWrapper, not {kind}")
    if get_device() == "mps":
        raise UsageError("--amp: no mixed precision training on mps; use a GPU or the CPU")
    if get_device() == "cpu":
        cfg.optim_wrapper.type = "mmlocal.CPUAmpOptimWrapper"
        for key in ("loss_scale", "dtype"):
            cfg.optim_wrapper.pop(key, None)
        return
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")


def _check_output_flags(args: argparse.Namespace, task: str) -> None:
    if task != "mmpretrain":
        for flag, value in (("--out-item", args.out_item), ("--interval", args.interval)):
            if value is not None:
                raise UsageError(f"{flag} applies to mmpretrain configs, this one is for {task}")
    if args.out_item and not args.out:
        raise UsageError("--out-item says what to write to --out FILE, which is missing")
    pickled = task == "mmdet" or (task == "mmpretrain" and args.out_item != "metrics")
    if args.out and pickled and not args.out.endswith((".pkl", ".pickle")):
        raise UsageError(f"--out: predictions are written as .pkl or .pickle, got {args.out!r}")
    if args.out_item == "metrics" and not args.out.endswith((".json", ".yml", ".yaml", ".pkl")):
        raise UsageError(f"--out: metrics are written as .json, .yml or .pkl, got {args.out!r}")
    if task == "mmseg" and args.out and osp.isfile(args.out):
        raise UsageError(f"--out: mmseg writes PNG files into a folder, {args.out!r} is a file")


def _show_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Turn on the visualization hook; each library has its own settings for the same thing."""
    hook = (cfg.get("default_hooks") or {}).get("visualization")
    if hook is None:
        raise UsageError("--show and --show-dir need default_hooks.visualization in the config")
    if cfg.default_scope == "mmpretrain":
        hook.update(
            enable=True,
            show=args.show,
            wait_time=args.wait_time,
            out_dir=args.show_dir,
            interval=args.interval or 1,
        )
        return
    hook.draw = True
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.show_dir and cfg.default_scope == "mmdet":
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def _build_runner(cfg: Config, whole: bool) -> Runner:
    """Build the runner; ``whole`` is whether the checkpoint must hold the whole model."""
    # MMEngine loads checkpoints with weights_only=True, but on failure again without. Code in a
    # checkpoint must not run unasked, so the second try is ruled out unless the user rules it in.
    if "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ:
        os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    if cfg.launcher == "pytorch" and get_device() == "cpu":
        _use_gloo(cfg)
    with build_errors(cfg):
        runner = RUNNERS.build(cfg)
    if isinstance(runner, Runner):  # other runners load in ways of their own
        runner.register_hook(CheckWeightsHook(whole))
        runner.register_hook(CheckBatchHook())
    return runner


def _use_gloo(cfg: Config) -> None:
    """MMEngine's torchrun launcher pins each rank to a GPU; without GPUs, join the group here."""
    torch.distributed.init_process_group("gloo")
    cfg.sync_bn = None  # SyncBatchNorm runs on GPUs only
    cfg.model_wrapper_cfg = ConfigDict(
        type="MMDistributedDataParallel",
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )


def _run(loop: Callable[[], Any], cfg: Config) -> Any:
    with build_errors(cfg):
        try:
            return loop()
        except pickle.UnpicklingError as error:
            raise UsageError(
                "the checkpoint holds more than tensors and plain values, so loading it could run "
                "foreign code. If you trust it, set TORCH_FORCE_WEIGHTS_ONLY_LOAD=0 and repeat. "
                f"({str(error).splitlines()[0]})"
            ) from error
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            raise UsageError(
                f"BatchNorm met a single value per channel ({error}): a batch of one image is too "
                "small for a layer that normalises pooled values; set "
                "train_dataloader.batch_size=2 or more"
            ) from error

"""Training, from the arguments of ``mmlocal train`` to MMEngine's runner."""

import os.path as osp
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device

from mmlocal.cli.resume import check_checkpoint, find_last_checkpoint
from mmlocal.cli.runner import (
    build_runner,
    check_phases,
    complete_loaders,
    run_config,
    run_loop,
    takes_amp,
)
from mmlocal.cli.settings import check_settings
from mmlocal.errors import UsageError
from mmlocal.libraries.config_parts import type_name


def run_training(config: str, **arguments: Any) -> None:
    """Train a model.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        **arguments: other arguments of :func:`config_for_training`.

    Raises:
        UsageError: a mistake that the user can mend.
    """
    cfg = config_for_training(config, **arguments)
    runner = build_runner(cfg, whole=bool(cfg.get("resume")))
    run_loop(runner.train, cfg)


def config_for_training(
    config: str,
    cfg_options: dict | None = None,
    *,
    work_dir: str | None = None,
    launcher: str = "none",
    local_rank: int = 0,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    no_validate: bool = False,
    no_pin_memory: bool = False,
    no_persistent_workers: bool = False,
    no_data_check: bool = False,
) -> Config:
    """Read, complete and check the config of a training run.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        cfg_options: settings to merge into the config, with dotted keys.
        work_dir: folder of the run; ``None`` for ``work_dir`` of the config, or
            ``work_dirs/<config name>`` if the config has none.
        launcher: ``"none"``, ``"pytorch"``, ``"slurm"`` or ``"mpi"``.
        local_rank: number of this process on its machine, unless ``LOCAL_RANK`` is set.
        resume: checkpoint to go on from; ``"auto"`` for the last one of the work dir.
        amp: train in mixed precision.
        auto_scale_lr: scale the learning rate by batch size / ``auto_scale_lr.base_batch_size``.
        no_validate: do not validate.
        no_pin_memory: turn ``pin_memory`` off in all data loaders.
        no_persistent_workers: turn ``persistent_workers`` off in all data loaders.
        no_data_check: do not compare the annotations with the config before the start.

    Raises:
        UsageError: a mistake that the user can mend: the config, its library, its data or the
            checkpoint is missing, or an argument does not apply.
    """
    cfg = run_config(config, cfg_options, work_dir, launcher, local_rank)
    if no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    # An empty dict asks for the usual validation.
    phases = ["train", "val"] if cfg.get("val_cfg") is not None else ["train"]
    check_settings(cfg, phases)
    if amp:
        _train_with_amp(cfg)
    if auto_scale_lr:
        _scale_lr(cfg)
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == "auto" else resume
    if cfg.get("resume") and not cfg.get("load_from"):
        cfg.load_from = find_last_checkpoint(cfg.work_dir)
    _check_strategy(cfg)
    check_checkpoint(cfg.get("load_from"), "checkpoint to start from")
    complete_loaders(cfg, True, no_pin_memory, no_persistent_workers)
    check_phases(cfg, phases, no_data_check)
    return cfg


def _check_strategy(cfg: Config) -> None:
    """Refuse to resume a sharded run, which would end in an error of PyTorch."""
    strategy = type_name((cfg.get("strategy") or {}).get("type"))
    starts = not cfg.get("load_from") and not osp.exists(osp.join(cfg.work_dir, "last_checkpoint"))
    if cfg.get("resume") and not starts and strategy == "FSDPStrategy":
        raise UsageError(
            "MMEngine's FSDPStrategy cannot resume a run, because it calls PyTorch in a way that "
            "PyTorch no longer takes; to start from the weights, use --cfg-options "
            "load_from=CHECKPOINT",
            "resume",
        )


def _train_with_amp(cfg: Config) -> None:
    kind = type_name(cfg.optim_wrapper.get("type", "OptimWrapper"))
    if kind not in ("OptimWrapper", "AmpOptimWrapper"):
        raise UsageError(f"can only replace the optim_wrapper type OptimWrapper, not {kind}", "amp")
    if get_device() == "mps":
        raise UsageError("no mixed precision training on mps; use a GPU or the CPU", "amp")
    if get_device() == "cpu":
        fast = takes_amp()
        cfg.optim_wrapper.type = "mmlocal.CPUAmpOptimWrapper" if fast else "OptimWrapper"
        for key in ("loss_scale", "dtype"):
            cfg.optim_wrapper.pop(key, None)
        return
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")


def _scale_lr(cfg: Config) -> None:
    if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
        raise UsageError(
            "the config does not say for which batch size its learning rate is; add "
            "auto_scale_lr=dict(base_batch_size=...)",
            "auto_scale_lr",
        )
    cfg.auto_scale_lr.enable = True

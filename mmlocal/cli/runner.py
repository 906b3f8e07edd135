"""The settings that train and test share, and the runner that carries out either."""

import os
import os.path as osp
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmlocal.cli.building import build_errors
from mmlocal.cli.config import load_config
from mmlocal.cli.data import check_annotations, check_data
from mmlocal.cli.tool import warn
from mmlocal.engine.batches import ONE_VALUE, CheckBatchHook
from mmlocal.engine.weights import CheckWeightsHook
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of


def run_config(
    config: str,
    cfg_options: dict | None = None,
    work_dir: str | None = None,
    launcher: str = "none",
    local_rank: int = 0,
) -> Config:
    """Read the config of a run, import its library, and say where and how it runs.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        cfg_options: settings to merge, with dotted keys.
        work_dir: folder of the run; ``None`` for the one of the config, or a folder of its name.
        launcher: ``"none"``, ``"pytorch"``, ``"slurm"`` or ``"mpi"``.
        local_rank: number of this process on its machine, unless ``LOCAL_RANK`` is set.

    Raises:
        UsageError: no such config, or its library cannot run here.
    """
    cfg = load_config(config, cfg_options)
    library_of(cfg).require()
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    cfg.launcher = launcher
    if work_dir or not cfg.get("work_dir"):
        cfg.work_dir = work_dir or osp.join("work_dirs", osp.splitext(osp.basename(config))[0])
    return cfg


def complete_loaders(
    cfg: Config,
    training: bool = False,
    no_pin_memory: bool = False,
    no_persistent_workers: bool = False,
) -> None:
    """Add the library's defaults to all data loaders, and turn off what the user does not want."""
    for phase in ("train", "val", "test"):
        loader = cfg.get(f"{phase}_dataloader")
        if loader is None:
            continue
        library_of(cfg).complete_loader(loader, training)
        if no_pin_memory:
            loader.pin_memory = False
        if no_persistent_workers:
            loader.persistent_workers = False


def check_phases(cfg: Config, phases: Sequence[str], no_data_check: bool = False) -> None:
    """Check that the data of some phases is here and, unless told otherwise, its annotations.

    Raises:
        UsageError: data is missing or does not fit the config.
    """
    if no_data_check:
        check_data(cfg, phases)
        return
    try:
        check_data(cfg, phases)
        check_annotations(cfg, phases)
    except UsageError:
        raise
    except Exception as error:  # settings of a type that nobody expects: building names them
        warn(f"the data was not checked: {type(error).__name__}: {error}")


def build_runner(cfg: Config, whole: bool) -> Runner:
    """Build the runner of a config.

    Args:
        cfg: whole config.
        whole: whether the checkpoint must hold the whole model.

    Raises:
        UsageError: names the config key of what cannot be built.
    """
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


def run_loop(loop: Callable[[], Any], cfg: Config) -> Any:
    """Call a method of a runner, such as ``runner.train``.

    Args:
        loop: what to call.
        cfg: the config of the runner.

    Raises:
        UsageError: what the config describes cannot be built, or cannot run as it is set.
    """
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

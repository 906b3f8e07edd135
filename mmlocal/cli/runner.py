"""Prepare and run MMEngine's runner, for training and for testing."""

import os
import os.path as osp
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from mmlocal.libraries.config_parts import type_name


def run_config(
    config: str,
    cfg_options: dict | None = None,
    work_dir: str | None = None,
    launcher: str = "none",
    local_rank: int = 0,
) -> Config:
    """Read the config of a run, import its library, and set its folder and launcher.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        cfg_options: settings to merge into the config, with dotted keys.
        work_dir: folder of the run; ``None`` for ``work_dir`` of the config, or
            ``work_dirs/<config name>`` if the config has none.
        launcher: ``"none"``, ``"pytorch"``, ``"slurm"`` or ``"mpi"``.
        local_rank: number of this process on its machine, unless ``LOCAL_RANK`` is set.

    Raises:
        UsageError: there is no such config, or its library cannot run here.
    """
    cfg = load_config(config, cfg_options)
    library_of(cfg).require()
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    cfg.launcher = launcher
    if work_dir or not cfg.get("work_dir"):
        cfg.work_dir = work_dir or osp.join("work_dirs", osp.splitext(osp.basename(config))[0])
    return cfg


def has_bfloat16() -> bool:
    """Tell whether this CPU has instructions for bfloat16.

    Without them, mixed precision is several times slower than float32. Older releases of PyTorch
    do not say what a CPU has. There the answer is yes.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, and the last one of ARM
    return not capabilities or any(map(capabilities.get, names))


def takes_amp() -> bool:
    """Tell whether mixed precision can be faster here, and warn if it cannot."""
    if get_device() != "cpu" or has_bfloat16():
        return True
    warn(
        "--amp is left out: this CPU has no instructions for bfloat16 (avx512_bf16, amx_bf16), so "
        "float32 is faster"
    )
    return False


def complete_loaders(
    cfg: Config,
    training: bool = False,
    no_pin_memory: bool = False,
    no_persistent_workers: bool = False,
) -> None:
    """Add the library's defaults to the configs of all data loaders.

    Args:
        cfg: whole config.
        training: whether the run trains.
        no_pin_memory: turn ``pin_memory`` off.
        no_persistent_workers: turn ``persistent_workers`` off.
    """
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
    """Check that the data of some phases is here, and that its annotations fit the config.

    Args:
        cfg: whole config.
        phases: phases that will run, of ``"train"``, ``"val"`` and ``"test"``.
        no_data_check: do not read the annotations.

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
    except Exception as error:  # a setting has an odd type; the builders report it
        warn(f"the data was not checked: {type(error).__name__}: {error}")


def build_runner(cfg: Config, whole: bool) -> Runner:
    """Build the runner of a config.

    Args:
        cfg: whole config.
        whole: whether the checkpoint must hold the whole model.

    Raises:
        UsageError: a part of the config cannot be built. The message names its key.
    """
    if cfg.launcher == "pytorch" and get_device() == "cpu":
        _use_gloo(cfg)
    with build_errors(cfg), _loading_runs_no_code():
        runner = RUNNERS.build(cfg)
    if isinstance(runner, Runner):  # other runners may load checkpoints in another way
        runner.register_hook(CheckWeightsHook(whole))
        runner.register_hook(CheckBatchHook())
    return runner


def run_loop(loop: Callable[[], Any], cfg: Config) -> Any:
    """Call a method of a runner, such as ``runner.train``, and explain the errors of the user.

    Args:
        loop: method to call.
        cfg: config of the runner.

    Returns:
        The result of the method.

    Raises:
        UsageError: a part of the config cannot be built, the checkpoint is not safe to load, or
            BatchNorm got a batch of one image.
    """
    with build_errors(cfg), _loading_runs_no_code():
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


def train_and_test(cfg: Config, whole: bool = False) -> tuple[Runner, float, dict[str, float]]:
    """Train the model of a config, and test it.

    Args:
        cfg: whole config, completed and checked for both.
        whole: whether the checkpoint must hold the whole model.

    Returns:
        The runner, the seconds of the training, and the metrics of the test.

    Raises:
        UsageError: a part of the config cannot be built, or as in :func:`run_loop`.
    """
    runner = build_runner(cfg, whole)
    start = time.perf_counter()
    run_loop(runner.train, cfg)
    seconds = time.perf_counter() - start
    return runner, seconds, run_loop(runner.test, cfg)


@contextmanager
def _loading_runs_no_code() -> Iterator[None]:
    """Force ``weights_only`` for all checkpoints, unless the user has chosen."""
    # MMEngine loads checkpoints with weights_only=True. If that fails, it tries again without, and
    # code in the checkpoint can run. This forbids the second try, unless the user allows it.
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    if any(name in os.environ for name in names):
        yield
        return
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]


def _use_gloo(cfg: Config) -> None:
    """Join the process group here, because MMEngine's launcher for torchrun needs GPUs."""
    torch.distributed.init_process_group("gloo")
    cfg.sync_bn = None  # SyncBatchNorm runs on GPUs only
    cfg.model_wrapper_cfg = ConfigDict(
        type="MMDistributedDataParallel",
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
    strategy = cfg.get("strategy")
    if isinstance(strategy, dict) and type_name(strategy.get("type")) == "FSDPStrategy":
        _shard_on_cpu(strategy)


def _shard_on_cpu(strategy: ConfigDict) -> None:
    """Let MMEngine's FSDP run without GPUs."""
    strategy.setdefault("model_wrapper", ConfigDict(type="MMFullyShardedDataParallel"))
    strategy.model_wrapper.setdefault("device_id", "cpu")
    if strategy.get("state_dict_cfg") == "full":
        # MMEngine moves the weights to the CPU. PyTorch crashes if they are there already.
        strategy.state_dict_cfg = ConfigDict(
            state_dict_type="FULL_STATE_DICT",
            state_dict_config=dict(type="FullStateDictConfig", rank0_only=True),
            optim_state_dict_config=dict(type="FullOptimStateDictConfig", rank0_only=True),
        )

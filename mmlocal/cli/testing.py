"""Testing, from the arguments of ``mmlocal test`` to MMEngine's runner."""

from typing import Any

import mmengine
from mmengine.config import Config
from mmengine.dist import master_only

from mmlocal.cli.resume import check_checkpoint
from mmlocal.cli.runner import (
    build_runner,
    check_phases,
    complete_loaders,
    run_config,
    run_loop,
    takes_amp,
)
from mmlocal.cli.settings import check_settings
from mmlocal.cli.tta import augment_test
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of


def run_testing(
    config: str,
    checkpoint: str,
    *,
    out: str | None = None,
    out_item: str | None = None,
    **arguments: Any,
) -> None:
    """Test a checkpoint.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        checkpoint: path or URL of the weights.
        out: file or folder for the results.
        out_item: ``"metrics"`` to write the metrics to ``out``, else the predictions.
        **arguments: other arguments of :func:`config_for_testing`.

    Raises:
        UsageError: a mistake that the user can mend.
    """
    cfg = config_for_testing(config, checkpoint, out=out, out_item=out_item, **arguments)
    runner = build_runner(cfg, whole=True)
    metrics = run_loop(runner.test, cfg)
    if out_item == "metrics":
        master_only(mmengine.dump)(metrics, out)


def config_for_testing(
    config: str,
    checkpoint: str,
    cfg_options: dict | None = None,
    *,
    work_dir: str | None = None,
    launcher: str = "none",
    local_rank: int = 0,
    out: str | None = None,
    out_item: str | None = None,
    amp: bool = False,
    tta: bool = False,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    interval: int | None = None,
    no_pin_memory: bool = False,
    no_data_check: bool = False,
) -> Config:
    """Read, complete and check the config of a test.

    Args:
        config: path of a config file, or the name of a config of mmlocal.
        checkpoint: path or URL of the weights.
        cfg_options: settings to merge into the config, with dotted keys.
        work_dir: folder of the run; ``None`` for ``work_dir`` of the config, or
            ``work_dirs/<config name>`` if the config has none.
        launcher: ``"none"``, ``"pytorch"``, ``"slurm"`` or ``"mpi"``.
        local_rank: number of this process on its machine, unless ``LOCAL_RANK`` is set.
        out: file or folder for the results, as the library writes them.
        out_item: ``"pred"`` or ``"metrics"``, for libraries that can write either to ``out``.
        amp: test in mixed precision.
        tta: augment the test images.
        show: show the predictions in a window.
        show_dir: folder for pictures of the predictions.
        wait_time: seconds for each picture in the window.
        interval: draw every n-th image, for libraries that have this argument.
        no_pin_memory: turn ``pin_memory`` off in all data loaders.
        no_data_check: do not compare the annotations with the config before the start.

    Raises:
        UsageError: a mistake that the user can mend: the config, its library, its data or the
            checkpoint is missing, or an argument does not apply.
    """
    cfg = run_config(config, cfg_options, work_dir, launcher, local_rank)
    library = library_of(cfg)
    library.refuse_foreign(out_item=out_item, interval=interval)
    if out_item and not out:
        raise UsageError("says what to write to --out FILE, which is missing", "out_item")
    if out:
        library.check_output(out, out_item)
    check_checkpoint(checkpoint, "checkpoint")
    cfg.load_from = checkpoint
    check_settings(cfg, ["test"])
    complete_loaders(cfg, no_pin_memory=no_pin_memory)
    check_phases(cfg, ["test"], no_data_check)
    if amp and takes_amp():
        cfg.test_cfg.fp16 = True
    if show or show_dir:
        library.show_predictions(cfg, show, show_dir, wait_time, interval)
    if tta:
        augment_test(cfg)
    if out and out_item != "metrics":
        library.write_predictions(cfg, out)
    return cfg

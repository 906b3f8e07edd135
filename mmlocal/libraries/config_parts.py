"""Helpers for libraries and commands that read or change configs."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from mmlocal.errors import UsageError

if TYPE_CHECKING:
    from mmengine.config import Config, ConfigDict


def type_name(kind: object) -> str:
    """Name of a class, without its scope or module.

    Args:
        kind: ``type`` in a config, a string or a class.
    """
    return str(getattr(kind, "__name__", kind)).rsplit(".", 1)[-1]


def metrics_of(cfg: Config, phase: str) -> dict[str, dict]:
    """Map the key of each metric of a phase to its config.

    Args:
        cfg: whole config.
        phase: ``"train"``, ``"val"`` or ``"test"``.
    """
    key = f"{phase}_evaluator"
    evaluator = cfg.get(key)
    if isinstance(evaluator, dict) and "metrics" in evaluator:
        key, evaluator = f"{key}.metrics", evaluator["metrics"]
    if isinstance(evaluator, (list, tuple)):
        metrics = {f"{key}.{index}": metric for index, metric in enumerate(evaluator)}
    else:
        metrics = {key: evaluator}
    return {key: metric for key, metric in metrics.items() if isinstance(metric, dict)}


def add_metric(cfg: Config, metric: dict) -> None:
    """Add a metric to the test.

    Args:
        cfg: whole config; this function changes it.
        metric: config of the metric.
    """
    owner, key = cfg, "test_evaluator"
    if isinstance(cfg[key], dict) and "metrics" in cfg[key]:
        owner, key = cfg[key], "metrics"
    metrics = owner[key]
    owner[key] = [*(metrics if isinstance(metrics, (list, tuple)) else [metrics]), metric]


def visualization_hook(cfg: Config) -> ConfigDict:
    """The config of the hook that draws predictions.

    Args:
        cfg: whole config.

    Raises:
        UsageError: the config has no such hook.
    """
    hook = (cfg.get("default_hooks") or {}).get("visualization")
    if hook is None:
        raise UsageError("--show and --show-dir need default_hooks.visualization in the config")
    return hook


def with_flips(pipeline: list[dict], pack: dict) -> list[dict]:
    """Make a pipeline of test-time augmentation from each image and its mirror image.

    Args:
        pipeline: configs of the steps before packing.
        pack: config of the step that packs a sample.
    """
    flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
    return [*deepcopy(pipeline), {"type": "TestTimeAug", "transforms": [flips, [pack]]}]

"""Check the files and labels of multi-task data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose

from mmlocal.cli.data.datasets import DataSet, is_local
from mmlocal.cli.data.report import Findings, shorten
from mmlocal.libraries.config_parts import metrics_of, type_name
from mmlocal.tasks import IGNORE, TASKS

_SAMPLE = 32  # number of images whose labels are read
_HEAD = "model.decode_head.tasks"


def check_multitask(cfg: Config, dataset: DataSet, findings: Findings) -> None:
    """Check files, tasks and metrics, and compare up to 32 label maps of each task with the head.

    Args:
        cfg: whole config.
        dataset: data set of the class ``MultiTaskDataset``.
        findings: collects the mistakes.
    """
    if not is_local(dataset.cfg):
        return
    try:
        built = dataset.kind(**_arguments(dataset.cfg))  # type: ignore[misc]
        items = built.load_data_list()
    except (OSError, TypeError, ValueError) as error:  # each names the fault and how to mend it
        findings.error(f"{dataset.key}: {error}")
        return
    outputs = ((cfg.get("model") or {}).get("decode_head") or {}).get("tasks") or {}
    without_labels = [name for name in outputs if name not in built.tasks]
    if without_labels:
        findings.error(
            f"{_HEAD} has {shorten(without_labels)}, for which {dataset.key}.tasks "
            f"({shorten(built.tasks)}) loads no labels"
        )
    for where, metric in metrics_of(cfg, dataset.phase).items():
        of_tasks = type_name(metric.get("type")) == "MultiTaskMetric"
        extra = [name for name in metric.get("tasks") or () if name not in outputs]
        if of_tasks and outputs and extra:
            findings.error(f"{where}.tasks has {shorten(extra)}, which {_HEAD} does not have")
    unused = [name for name in built.tasks if name not in outputs]
    if unused and dataset.phase == "train":
        findings.warn(f"{dataset.key}.tasks loads {shorten(unused)}, which {_HEAD} does not have")
    steps = [
        step
        for step in dataset.cfg.get("pipeline") or []
        if type_name(step.get("type")).startswith("Load")
    ]
    if not any(type_name(step["type"]) == "LoadMultiTaskAnnotations" for step in steps):
        return
    items = items[:: max(1, len(items) // _SAMPLE)][:_SAMPLE]
    counted = {
        name: settings["num_classes"]
        for name, settings in outputs.items()
        if name in built.tasks and isinstance(settings, dict) and "num_classes" in settings
    }
    _check_labels(dataset, Compose(steps), items, counted, findings)


def _arguments(cfg: dict) -> dict[str, Any]:
    """Arguments of a data set without its transforms, which finds its files later."""
    arguments = {key: value for key, value in cfg.items() if key != "type"}
    return {**arguments, "pipeline": [], "lazy_init": True}


def _check_labels(
    dataset: DataSet, load: Compose, items: list[dict], counted: dict[str, int], findings: Findings
) -> None:
    """Compare the labels of some images with the number of outputs of each task."""
    seen: dict[str, set[int]] = {name: set() for name in counted}
    for item in items:
        try:
            loaded = load(dict(item))
        except Exception as error:  # files of strangers break in many ways
            findings.error(f"{dataset.key}: the labels of {item['img_path']}: {error}")
            return
        for name, labels in seen.items():
            labels |= {int(label) for label in np.unique(loaded[TASKS[name].gt_key])}
    where = f"{dataset.key} (seen in {len(items)} images)"
    for name, labels in seen.items():
        if not labels - {IGNORE}:
            findings.warn(f"{where}: every pixel of {name!r} is to be ignored (label {IGNORE})")
        beyond = sorted(label for label in labels - {IGNORE} if label >= counted[name])
        if beyond:
            setting = f"{_HEAD}.{name}.num_classes"
            findings.error(
                f"{where}: no output for label {shorten(beyond)}, as {setting} is {counted[name]}"
            )
            findings.set(setting, max(beyond) + 1)

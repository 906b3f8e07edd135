"""Relative change of all metrics against a baseline."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmlocal.tasks import Task


def load_baseline(
    baseline: str | Path | Mapping[str, float], tasks: Sequence[Task]
) -> dict[str, float]:
    """Read the metrics of a baseline.

    Args:
        baseline: a JSON file with one object, or a dict. It has a number for the metric of each
            task under its ``metric_key``. Other entries are ignored. A test by MMEngine writes such
            a file, ``<work dir>/<time>/<time>.json``.
        tasks: the tasks whose metrics are wanted.

    Returns:
        The metrics of the tasks, by name.

    Raises:
        ValueError: the file is missing or holds something else, or a metric is missing, no positive
            number, or a percentage.
    """
    source = "baseline"
    if isinstance(baseline, str | Path):
        source = f"baseline {baseline}"
        try:
            baseline = json.loads(Path(baseline).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{source} is no readable JSON file ({error}); a test writes one as "
                "<work dir>/<time>/<time>.json"
            ) from error
    if not isinstance(baseline, Mapping):
        raise ValueError(f"{source} must hold one object of metrics, got {type(baseline).__name__}")
    values: dict[str, float] = {}
    for task in tasks:
        key = task.metric_key
        if key not in baseline:
            raise ValueError(
                f"{source} has no {key!r}, which delta needs for the task {task.name!r}; add it, "
                "or leave the task out"
            )
        value = baseline[key]
        if not isinstance(value, numbers.Real) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{source}: {key!r} must be a positive number, got {value!r}")
        if task.higher_is_better and value > 1:
            raise ValueError(
                f"{source}: {key!r} must be a fraction of 1, got {value}; divide percentages by 100"
            )
        values[key] = float(value)
    return values


def delta(
    metrics: Mapping[str, float], baseline: Mapping[str, float], tasks: Sequence[Task]
) -> float:
    """Average the relative changes of all tasks, in percent::

        delta = 100 / T * sum_t sign_t * (metric_t - baseline_t) / baseline_t

    The sign is -1 for a metric that is better when lower, and 1 for any other.

    Args:
        metrics: a metric for each task, under its ``metric_key``.
        baseline: the metrics of the baseline, by the same names.
        tasks: the ``T`` tasks.

    Returns:
        The change; positive if the metrics are better than the baseline.

    Source:
        Maninis et al., "Attentive Single-Tasking of Multiple Tasks", CVPR 2019, section 5; ITSA
        takes DeMT as the baseline instead of single-task networks.
    """
    changes = []
    for task in tasks:
        value, base = metrics[task.metric_key], baseline[task.metric_key]
        changes.append((value - base) / base * (1 if task.higher_is_better else -1))
    return 100 * sum(changes) / len(changes)

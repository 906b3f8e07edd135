"""Metrics of multi-task dense prediction."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

from mmlocal.evaluation.boundary_metric import BoundaryF, PackedBoundaries
from mmlocal.evaluation.delta import delta, load_baseline
from mmlocal.evaluation.dense_metrics import RMSE, DenseMetric, MaxF, MeanAngle, MeanIoU
from mmlocal.registry import METRICS
from mmlocal.tasks import Task, find_tasks

# The metrics without arguments.
_METRICS: dict[str, type[DenseMetric]] = {"maxF": MaxF, "RMSE": RMSE, "mErr": MeanAngle}


@METRICS.register_module()
class MultiTaskMetric(BaseMetric):
    """One metric for each task, and their mean change against a baseline.

    The names of the results are ``semseg/mIoU``, ``human_parts/mIoU``, ``sal/maxF``, ``depth/RMSE``
    (metres), ``normals/mErr`` (degrees), ``edge/odsF`` and ``delta`` (percent). mIoU, maxF and odsF
    are fractions of 1.
    The metric reads ``gt_<field>`` and ``pred_<field>`` of :class:`mmlocal.tasks.Task` in each
    sample. Prediction and ground truth have the same size.

    A metric is a function of sums over all pixels of the set, and not a mean over images or
    batches. A task without any valid pixel in the whole set gives NaN and a warning.

    Args:
        tasks: names of tasks.
        num_classes: number of classes of ``semseg`` and ``human_parts``, background included.
        baseline: a JSON file with the metrics of a baseline, or a dict; see
            :func:`mmlocal.evaluation.delta.load_baseline`. ``None`` for no ``delta``.
        edge: arguments of :class:`mmlocal.evaluation.boundary_metric.BoundaryF`, such as
            ``dict(max_dist=0.011)``. ``None`` leaves odsF out, which takes seconds for each image.
        collect_device: device on which MMEngine collects results from other processes.
        prefix: prefix of the names of the metrics; ``None`` for none.

    Raises:
        TypeError: ``num_classes`` is no dict.
        ValueError: a task is unknown or occurs twice, ``num_classes`` lacks a task or names another
            one, the baseline lacks a metric, ``edge`` is given without the task ``edge``, or
            ``baseline`` is given with the task ``edge`` but without ``edge``.
    """

    default_prefix = ""

    def __init__(
        self,
        tasks: Sequence[str],
        num_classes: Mapping[str, int] | None = None,
        baseline: str | Path | Mapping[str, float] | None = None,
        edge: Mapping | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.tasks = find_tasks(tasks)
        self._metrics = _make_metrics(self.tasks, num_classes)
        self._edge = _make_edge_metric(self.tasks, edge, baseline)
        self._baseline = None if baseline is None else load_baseline(baseline, self.tasks)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Sum over the pixels of each image."""
        for sample in data_samples:
            sums: dict[str, np.ndarray | PackedBoundaries | None] = {}
            for task in self.tasks:
                if task.name == "edge" and self._edge is None:
                    continue
                pred, label = _maps(task, sample)
                try:
                    if task.name == "edge" and self._edge is not None:
                        sums["edge"] = self._edge.pack(pred, label, _name(sample))
                    else:
                        vector = self._metrics[task.name].sums(pred, label.to(pred.device))
                        sums[task.name] = vector.cpu().numpy()
                except ValueError as error:
                    raise ValueError(f"{task.name} of {_name(sample)}: {error}") from error
            self.results.append(sums)

    def evaluate(self, size: int) -> dict[str, float]:
        """Match the boundaries of this process's images, then compute the metrics of the set."""
        if self._edge is not None:
            counts = self._edge.counts([sums["edge"] for sums in self.results])
            for sums, vector in zip(self.results, counts, strict=True):
                sums["edge"] = vector
        return super().evaluate(size)

    def compute_metrics(self, results: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Add up the images, and compute the metrics."""
        if not results:
            raise ValueError("no image was evaluated; the test set is empty")
        metrics = {}
        for task in self.tasks:
            metric = self._edge if task.name == "edge" else self._metrics[task.name]
            if metric is None:
                continue
            total = np.sum([sums[task.name] for sums in results], axis=0)
            value = metrics[task.metric_key] = metric.value(total)
            if np.isnan(value):
                print_log(
                    f"{task.metric_key} is NaN: either the {len(results)} images have no valid "
                    f"label of the task, or the predictions are NaN",
                    logger="current",
                    level=logging.WARNING,
                )
        if self._baseline is not None:
            metrics["delta"] = delta(metrics, self._baseline, self.tasks)
        return metrics


def _make_metrics(
    tasks: Sequence[Task], num_classes: Mapping[str, int] | None
) -> dict[str, DenseMetric]:
    """Build the metrics of the tasks, except for ``edge``."""
    num_classes = {} if num_classes is None else num_classes
    if not isinstance(num_classes, Mapping):
        raise TypeError(f"num_classes must be a dict such as dict(semseg=40), got {num_classes!r}")
    metrics: dict[str, DenseMetric] = {}
    for task in tasks:
        if task.metric == "mIoU":
            if task.name not in num_classes:
                raise ValueError(f"num_classes must have {task.name!r}: dict({task.name}=...)")
            metrics[task.name] = MeanIoU(num_classes[task.name])
        elif task.metric != "odsF":
            metrics[task.name] = _METRICS[task.metric]()
    if others := [name for name in num_classes if not isinstance(metrics.get(name), MeanIoU)]:
        raise ValueError(f"num_classes names {', '.join(others)}, which tasks has not or needs not")
    return metrics


def _make_edge_metric(
    tasks: Sequence[Task], edge: Mapping | None, baseline: object
) -> BoundaryF | None:
    """Build the metric of ``edge``, unless it is left out."""
    has_edge = any(task.name == "edge" for task in tasks)
    if edge is None:
        if has_edge and baseline is not None:
            raise ValueError("delta needs odsF: give edge=dict(max_dist=...), or no baseline")
        return None
    if not has_edge:
        raise ValueError("edge is given, but tasks has no 'edge'; set edge=None, or add the task")
    return BoundaryF(**edge)


def _maps(task: Task, sample: dict) -> tuple[Tensor, Tensor]:
    """Find prediction and ground truth of a task, each ``(C, H, W)``."""
    maps = []
    for field, fix in (
        (task.pred_field, f"the model must predict {task.name!r}, or tasks must leave it out"),
        (task.gt_field, f"the test pipeline must load labels of {task.name!r}"),
    ):
        if field not in sample:
            raise ValueError(f"{task.name} of {_name(sample)}: there is no {field}; {fix}")
        maps.append(sample[field]["data"])
    pred, label = maps
    if pred.shape != label.shape:
        raise ValueError(
            f"{task.name} of {_name(sample)}: {task.pred_field} is {tuple(pred.shape)} and "
            f"{task.gt_field} is {tuple(label.shape)}; a test pipeline must load labels at the "
            "original size of the image"
        )
    return pred, label


def _name(sample: dict) -> str:
    """Find the identifier of an image, for lists of images and for messages."""
    return str(sample.get("sample_id") or Path(sample.get("img_path") or "an image").stem)

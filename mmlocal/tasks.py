"""The tasks of multi-task dense prediction, one entry each.

Data sets, transforms, heads, metrics and pictures read this table, so they name a task and its maps
alike. It imports nothing. ``docs/multitask_data.md`` says what a new task needs beside its entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task: one map of labels or values for an image.

    Args:
        name: name in configs.
        field: name of the map. A pipeline has it as ``gt_<pipeline_field>``, a data sample as
            ``gt_<field>`` and ``pred_<field>``.
        channels: channels of a network's output; ``None`` for one channel per class.
        pad_value: value of the label map where an image is padded.
        metric: name of the metric.
        higher_is_better: whether a higher value of the metric is better.
        continuous: whether the map holds measurements (float32) instead of labels (integers).
        pipeline_field: name of the map in a pipeline, where it differs from ``field``.

    Note:
        Labels and measurements of 255 are ignored. A normal is ignored if one of its three
        components is 255.
    """

    name: str
    field: str
    channels: int | None
    pad_value: int
    metric: str
    higher_is_better: bool
    continuous: bool = False
    pipeline_field: str = ""

    @property
    def gt_key(self) -> str:
        """Key of the label map in a pipeline, as in MMSegmentation."""
        return f"gt_{self.pipeline_field or self.field}"

    @property
    def gt_field(self) -> str:
        """Field of the label map in a data sample."""
        return f"gt_{self.field}"

    @property
    def pred_field(self) -> str:
        """Field of the prediction in a data sample."""
        return f"pred_{self.field}"

    @property
    def metric_key(self) -> str:
        """Name of the metric in results and in files of baselines, such as ``semseg/mIoU``."""
        return f"{self.name}/{self.metric}"


#: The value of labels, and of measurements, that no loss and no metric counts.
IGNORE = 255

#: All tasks by name, in the order of the papers' tables.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("semseg", "sem_seg", None, 255, "mIoU", True, pipeline_field="seg_map"),
        Task("human_parts", "parts_map", None, 255, "mIoU", True),
        Task("sal", "saliency_map", 2, 255, "maxF", True),
        Task("depth", "depth_map", 1, 0, "RMSE", False, continuous=True),
        Task("normals", "normal_map", 3, 0, "mErr", False, continuous=True),
        Task("edge", "edge_map", 1, 255, "odsF", True),
    )
}


def find_tasks(names: Iterable[str]) -> tuple[Task, ...]:
    """Look up tasks by name.

    Args:
        names: names of tasks, each at most once.

    Returns:
        The tasks, in the given order.

    Raises:
        TypeError: ``names`` is a string.
        ValueError: there is no name, a name is unknown, or a name occurs twice.
    """
    if isinstance(names, str):
        raise TypeError(f"tasks must be a list of names, got the string {names!r}")
    names = list(names)
    if not names:
        raise ValueError(f"tasks must name at least one of {', '.join(TASKS)}")
    for name in names:
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}; there are {', '.join(TASKS)}")
        if names.count(name) > 1:
            raise ValueError(f"tasks names {name!r} {names.count(name)} times; name each task once")
    return tuple(TASKS[name] for name in names)

"""Checks of maps of several tasks."""

from __future__ import annotations

from torch import Tensor

from mmlocal.layers.checks import check_tensor


def check_task_maps(
    x: Tensor, embed_dims: int, num_tasks: int | None = None, name: str = "x"
) -> None:
    """Check that ``x`` holds one map of tokens per task, ``(B, T, H, W, embed_dims)``.

    Args:
        x: the maps to check.
        embed_dims: channels that ``x`` must have.
        num_tasks: tasks that ``x`` must have; ``None`` for any number of at least 1.
        name: name of the argument, for the error.

    Raises:
        TypeError: ``x`` is not a tensor, or not floating point.
        ValueError: ``x`` has another shape, or no task, row or column.
    """
    check_tensor(x)
    tasks = "T" if num_tasks is None else f"num_tasks={num_tasks}"
    if (
        x.dim() != 5
        or x.shape[4] != embed_dims
        or (num_tasks is not None and x.shape[1] != num_tasks)
    ):
        raise ValueError(
            f"{name} must be (B, {tasks}, H, W, embed_dims={embed_dims}), got {tuple(x.shape)}"
        )
    if min(x.shape[1:4]) == 0:
        raise ValueError(
            f"{name} must have at least one task, one row and one column, got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")

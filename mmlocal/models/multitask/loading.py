"""Refusal of the weights of another head, in every load.

MMEngine's ``load_from`` would leave the layers random, and only log it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

# A loss may store numbers, but does not tell one head from another.
_NO_PART = frozenset({"losses"})


def refuse_other_heads_on_load(head: nn.Module) -> None:
    """Make every way of loading refuse the weights of another kind of head.

    A head of another kind has other parts, or other weights among its tasks (``interaction``).
    Other tasks or numbers of classes pass. But the weights of ITSA's ``interaction`` belong to
    tasks by their place, so its tasks must be the same, in the same order.

    Args:
        head: a multi-task head.
    """
    head.register_load_state_dict_pre_hook(_refuse_other_heads)


def _refuse_other_heads(
    head: Any, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
) -> None:
    theirs = {
        name.removeprefix(prefix): tuple(value.shape)
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
    if not theirs:
        return
    ours = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    advice = (
        "Check the type and the arguments of decode_head; weights of the official DeMT: mmlocal "
        f"convert --from demt; to load the rest only, take {prefix}* out of the checkpoint"
    )
    name = type(head).__name__
    parts, their_parts = _parts(ours), _parts(theirs)
    if parts != their_parts:
        raise ValueError(
            f"{name} cannot take the checkpoint, which is of another head: it has the parts "
            f"{_list(their_parts)} in {prefix[:-1] or 'the head'}, and {name} has "
            f"{_list(parts)}. {advice}"
        )
    tasks, their_tasks = _tasks(ours), _tasks(theirs)
    # A file with sorted names does not tell the order.
    known = list(theirs) != sorted(theirs) or set(tasks) != set(their_tasks)
    ours, theirs = (
        {name: shape for name, shape in shapes.items() if name.startswith("interaction.")}
        for shapes in (ours, theirs)
    )
    if ours != theirs:
        different = sorted(ours.items() ^ theirs.items())[0][0]
        raise ValueError(
            f"{name} cannot take the checkpoint, which is of another head or of other tasks: "
            f"{prefix}{different} is {theirs.get(different, 'missing')} there, and "
            f"{ours.get(different, 'missing')} here. {advice}"
        )
    if known and tasks != their_tasks:
        raise ValueError(
            f"{name} cannot take the checkpoint, which is of other tasks: weights among tasks "
            f"belong to {', '.join(their_tasks)} there, in this order, and to "
            f"{', '.join(tasks)} here. {advice}"
        )


def _parts(names: Iterable[str]) -> set[str]:
    """The parts that own the names."""
    return {name.partition(".")[0] for name in names} - _NO_PART


def _tasks(names: Iterable[str]) -> list[str]:
    """The tasks in their order, if weights of ``interaction`` belong to them by their place."""
    names = list(names)
    if not any(name.startswith("interaction.steps.") for name in names):
        return []
    found = (name.split(".")[1] for name in names if name.startswith("mixers."))
    return list(dict.fromkeys(found))


def _list(parts: Iterable[str]) -> str:
    return ", ".join(sorted(parts))

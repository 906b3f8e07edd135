"""Checks of the generator's arguments."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from mmlocal.datasets.scenes import LAYOUTS, MIN_SCENE_SIDE


def check_integer(name: str, value: Any, minimum: int) -> int:
    """Return ``value`` as an int of at least ``minimum``, else raise an error that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return number


def check_names(argument: str, names: Sequence[str], all_names: Iterable[str]) -> list[str]:
    """Return a choice of names in the order of ``all_names``, else raise an error."""
    if isinstance(names, str):
        raise TypeError(
            f"{argument} must be a sequence such as ({names!r},), got the string {names!r}"
        )
    if not names or set(names) - set(all_names):
        raise ValueError(
            f"{argument} must be one or more of {tuple(all_names)}, got {tuple(names)!r}"
        )
    return in_order(names, all_names)


def check_scenes(size: Sequence[int], layouts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of scenes in depth as a manifest keeps them, else raise an error."""
    if len(size) != 2:
        raise ValueError(f"scene_size must be a height and a width, got {tuple(size)!r}")
    sides = [check_integer("scene_size", side, MIN_SCENE_SIDE) for side in size]
    return {"scene_size": sides, "layouts": check_names("layouts", layouts, LAYOUTS)}


def in_order(names: Sequence[str], all_names: Iterable[str]) -> list[str]:
    """Sort names as ``all_names`` has them, each once."""
    return [name for name in all_names if name in names]

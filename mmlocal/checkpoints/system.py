"""Shared parts of the converters of the official code bases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from mmlocal.checkpoints.files import load_file


@dataclass
class Renamed:
    """An official checkpoint under our names.

    Args:
        cfg: config of the backbone that its shapes describe.
        backbone: state dict of that backbone.
        heads: the other tensors, under the names of a full model.
        dropped: official names of tensors that our models do not store.
        left: entries of the official checkpoint that are not carried over.
        tables: arguments to replace in ``cfg``. They may change the sizes of tables only, which
            are interpolated.
        source: what ``meta['source']`` says beside the file.
        meta: further entries of ``meta``.
        untold: arguments of the backbone that no weight tells. Where ``cfg`` does not have one, its
            default is assumed.
    """

    cfg: dict
    backbone: dict[str, Tensor]
    heads: dict[str, Tensor]
    dropped: list[str]
    left: list[str]
    tables: dict = field(default_factory=dict)
    source: dict = field(default_factory=dict)
    meta: dict = field(default_factory=dict)
    untold: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    """How to convert the checkpoints of one official code base.

    Args:
        model: name of its models, for messages.
        rename: makes a :class:`Renamed` of what ``load`` returns, and of any of ``options``; raises
            ``ValueError`` if it cannot.
        options: keyword arguments of ``rename``, each with the settings of its flag on the command
            line, as ``argparse`` takes them.
        find: the file to read, given the path that the user named.
        load: reads that file; raises ``OSError`` or ``ValueError``.
        antialias: of :func:`~mmlocal.checkpoints.match_state_dict`, for ``Renamed.tables``.
    """

    model: str
    rename: Callable[..., Renamed]
    options: Mapping[str, dict[str, Any]]
    find: Callable[[Path], Path] = Path
    load: Callable[[Path], dict] = load_file
    antialias: bool = False


def shape_of(model: str, state_dict: Mapping[str, Tensor], key: str, dims: int) -> tuple[int, ...]:
    """Shape of an entry that every official ``model`` has.

    Raises:
        ValueError: there is no such entry, or it has not ``dims`` dimensions, none of them empty.
    """
    if key not in state_dict:
        raise ValueError(f"it is no {model}: there is no {key}")
    shape = tuple(state_dict[key].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"it is no {model}: {key} must have {dims} dimensions, got {shape}")
    return shape


def square(key: str, length: int) -> int:
    """Side of the square map that ``key`` holds in rows.

    Raises:
        ValueError: ``length`` is no square number.
    """
    side = isqrt(length)
    if side**2 != length:
        raise ValueError(f"{key} must hold a square map, got {length} positions")
    return side


def check_renamed(official: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Check that no number got lost.

    Raises:
        ValueError: the state dicts do not hold as many numbers.
    """
    if sum(t.numel() for t in official.values()) != sum(t.numel() for t in ours.values()):
        raise ValueError("several of its tensors would get the same name")


def some(names: list) -> str:
    """The first three of ``names``."""
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")

"""Checks of arguments that all ops share. Backends rely on them and check nothing."""

from __future__ import annotations

import numbers
from collections.abc import Mapping

import torch
from torch import Tensor


def check_counts(**counts: int) -> None:
    """Raise a TypeError unless all arguments are whole numbers."""
    for name, count in counts.items():
        if type(count) is int:
            continue
        if isinstance(count, bool) or not isinstance(count, (numbers.Integral, torch.SymInt)):
            raise TypeError(f"{name} must be an int, got {count!r} ({type(count).__name__})")


def check_positive(**counts: int) -> None:
    """Raise a ValueError unless all arguments are at least 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def check_flags(**flags: bool) -> None:
    """Raise a TypeError unless all arguments are ``True`` or ``False``."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")


def check_tensors(op: str, optional: Mapping[str, Tensor | None], **tensors: Tensor) -> None:
    """Raise an error unless all arguments are tensors of floats on one device.

    Args:
        op: public function, for error messages.
        optional: the function's arguments that may be ``None``, by name.
        **tensors: the function's arguments that must be tensors, by name.

    Raises:
        TypeError: an argument is not a tensor of floats. For ``torch.fx``, the message names
            ``torch.export``.
        ValueError: the tensors are on several devices.
    """
    first = None
    there = {name: tensor for name, tensor in optional.items() if tensor is not None}
    for name, tensor in {**tensors, **there}.items():
        if isinstance(tensor, torch.fx.Proxy):
            raise TypeError(
                f"{op}: torch.fx.symbolic_trace cannot follow its checks; use torch.export.export"
            )
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        first = first or (name, tensor.device)
        if tensor.device != first[1]:
            raise ValueError(
                f"{name} must be on the device of {first[0]} ({first[1]}), got {tensor.device}"
            )


def check_maps(**maps: Tensor) -> None:
    """Raise a ValueError unless all maps are ``(B, C, H, W)`` with the same B, H and W.

    Args:
        **maps: maps by name. The first one must have at least one channel and one pixel.
    """
    for name, tensor in maps.items():
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must have the 4 dimensions (B, C, H, W), got {tuple(tensor.shape)}"
            )
    (first, like), *others = maps.items()
    if 0 in like.shape[1:]:
        raise ValueError(
            f"{first} must have at least one channel and one pixel, got {tuple(like.shape)}"
        )
    for name, tensor in others:
        if tensor.shape[0] != like.shape[0] or tensor.shape[2:] != like.shape[2:]:
            raise ValueError(
                f"{name} must have the batch size and map of {first} {tuple(like.shape)}, "
                f"got {tuple(tensor.shape)}"
            )


def count_heads(value: Tensor, name: str, channels: int, per_head: int, meaning: str) -> int:
    """Return the number of heads that share the channels of ``value``.

    Args:
        value: ``(B, C, H, W)``.
        name: argument that determines the number of heads.
        channels: number of channels of the argument ``name``.
        per_head: number of channels of the argument ``name`` for each head.
        meaning: ``channels`` in words, for error messages.

    Raises:
        ValueError: ``channels`` is not a multiple of ``per_head``, or ``C`` is not a multiple of
            the number of heads.
    """
    if channels == 0 or channels % per_head:
        raise ValueError(
            f"{name} must have {meaning} channels (a multiple of {per_head}), got {channels}"
        )
    heads = channels // per_head
    if value.shape[1] % heads:
        raise ValueError(
            f"value must have a multiple of heads={heads} channels, got {value.shape[1]}"
        )
    return heads


def check_tables(shape: tuple[int, ...], meaning: str, **tables: Tensor | None) -> None:
    """Raise a ValueError unless all tables have the expected shape.

    Args:
        shape: expected shape.
        meaning: expected shape in words, for error messages.
        **tables: tables by name. ``None`` passes.
    """
    for name, table in tables.items():
        if table is not None and table.shape != shape:
            raise ValueError(
                f"{name} must have shape {meaning} = {shape}, got {tuple(table.shape)}"
            )

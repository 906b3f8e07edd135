"""Selection of the entries of a state dict that fit a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor


@dataclass
class MatchReport:
    """Names of a state dict compared with the names of a model.

    Args:
        loaded: names in both, with equal shapes.
        resized: names in both, with tensors that were interpolated to the shape of the model.
        mismatched: names in both, with different shapes.
        missing: names in the model alone.
        unexpected: names in the state dict alone.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for name in ("resized", "mismatched", "missing", "unexpected"):
            keys = getattr(self, name)
            parts.append(f"{len(keys)} {name}" + (f" ({some(keys)})" if keys else ""))
        return "; ".join(parts)


def match_state_dict(
    state_dict: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    optional: str = r"(?!)",
    antialias: bool = False,
) -> tuple[dict[str, Tensor], MatchReport]:
    """Select the part of ``state_dict`` that fits ``target``.

    It resizes two kinds of tensors by bicubic interpolation, as Swin's fine-tuning does. It knows
    them by their names: a table ``*_table`` of shape ``(side * side, heads)`` belongs to a square
    window, and a position embedding ``*pos_embed`` of shape ``(1, C, H, W)`` to a map.

    Args:
        state_dict: names and tensors to load.
        target: state dict of the model.
        optional: regular expression of names that the report does not list as missing.
        antialias: whether to interpolate as JAX and QnA's fine-tuning do, with another cubic and
            without aliasing where a table shrinks.

    Returns:
        The entries that can be loaded, and the report.
    """
    report = MatchReport()
    selected = {}
    for key, tensor in target.items():
        if key not in state_dict:
            if not re.match(optional, key):
                report.missing.append(key)
            continue
        source = state_dict[key]
        if not isinstance(source, Tensor):
            report.mismatched.append(f"{key}: {type(source).__name__} for {tuple(tensor.shape)}")
            continue
        if source.shape == tensor.shape:
            selected[key] = source
            report.loaded.append(key)
            continue
        shapes = f"{key}: {tuple(source.shape)} for {tuple(tensor.shape)}"
        resized = _resize(key.rpartition(".")[2], source, tensor, antialias)
        if resized is None:
            report.mismatched.append(shapes)
        else:
            selected[key] = resized
            report.resized.append(shapes)
    report.unexpected = [key for key in state_dict if key not in target]
    return selected, report


def _resize(name: str, source: Tensor, target: Tensor, antialias: bool) -> Tensor | None:
    """Resize ``source`` to the shape of ``target``; ``None`` if its kind is never resized."""
    if name.endswith("pos_embed") and source.dim() == target.dim() == 4:  # (1, C, H, W)
        height, width = target.shape[2:]
        if source.shape[:2] == target.shape[:2]:
            return _bicubic(source, height, width, antialias)
    elif name.endswith("_table") and source.dim() == target.dim() == 2:  # (side * side, heads)
        old, new = math.isqrt(len(source)), math.isqrt(len(target))
        if source.shape == (old**2, target.shape[1]) and len(target) == new**2:
            maps = source.t().reshape(1, -1, old, old)
            return _bicubic(maps, new, new, antialias).flatten(2)[0].t()
    return None


def _bicubic(maps: Tensor, height: int, width: int, antialias: bool) -> Tensor:
    resized = F.interpolate(
        maps.float(), (height, width), mode="bicubic", align_corners=False, antialias=antialias
    )
    return resized.to(maps.dtype)


def some(names: list) -> str:
    """Join the first three of ``names``, for a message."""
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")

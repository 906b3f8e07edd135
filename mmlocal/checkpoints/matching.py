"""What of a state dict fits a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class MatchReport:
    """Names of a state dict held against those of a model.

    Args:
        loaded: in both, with equal shapes.
        mismatched: in both, with different shapes.
        missing: in the model only.
        unexpected: in the state dict only.
    """

    loaded: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for name in ("mismatched", "missing", "unexpected"):
            keys = getattr(self, name)
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            parts.append(f"{len(keys)} {name}" + (f" ({shown})" if keys else ""))
        return "; ".join(parts)


def match_state_dict(
    state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor], optional: str = r"(?!)"
) -> tuple[dict[str, Tensor], MatchReport]:
    """Select the part of ``state_dict`` that fits ``target``.

    Args:
        state_dict: names and tensors to load.
        target: state dict of the model.
        optional: regular expression of the names that may be missing without being reported.

    Returns:
        What can be loaded, and the report.
    """
    report = MatchReport()
    selected = {}
    for key, tensor in target.items():
        if key not in state_dict:
            if not re.match(optional, key):
                report.missing.append(key)
        elif state_dict[key].shape != tensor.shape:
            shapes = f"{tuple(state_dict[key].shape)} for {tuple(tensor.shape)}"
            report.mismatched.append(f"{key}: {shapes}")
        else:
            selected[key] = state_dict[key]
            report.loaded.append(key)
    report.unexpected = [key for key in state_dict if key not in target]
    return selected, report

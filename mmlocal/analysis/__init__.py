"""Cost of a model: parameters and multiply-accumulates. Only they need MMEngine."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmlocal.analysis.flops import (
        MMENGINE_HANDLES,
        Complexity,
        ModuleWork,
        build_to_count,
        count_macs,
        count_model,
        count_work,
        model_complexity,
        register_formulas,
    )

__all__ = [
    "MMENGINE_HANDLES",
    "Complexity",
    "ModuleWork",
    "build_to_count",
    "count_macs",
    "count_model",
    "count_work",
    "model_complexity",
    "register_formulas",
]


def __getattr__(name: str) -> Any:
    """Import the counter when one of its names is used: ``measure`` works without MMEngine."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("mmlocal.analysis.flops"), name)

"""Cost of a model: parameters and multiply-accumulates."""

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

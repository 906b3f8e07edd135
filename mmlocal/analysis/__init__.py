"""Cost of a model: parameters and multiply-accumulates."""

from mmlocal.analysis.flops import (
    MMENGINE_HANDLES,
    Complexity,
    count_macs,
    model_complexity,
    published_table,
)

__all__ = [
    "MMENGINE_HANDLES",
    "Complexity",
    "count_macs",
    "model_complexity",
    "published_table",
]

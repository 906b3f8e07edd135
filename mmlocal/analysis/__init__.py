"""Cost of a model: parameters and multiply-accumulates."""

from mmlocal.analysis.flops import Complexity, count_macs, model_complexity, published_table

__all__ = ["Complexity", "count_macs", "model_complexity", "published_table"]

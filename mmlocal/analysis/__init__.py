"""What a model costs: parameters and multiply-accumulates."""

from mmlocal.analysis.flops import Complexity, count_macs, markdown_table, model_complexity

__all__ = ["Complexity", "count_macs", "markdown_table", "model_complexity"]

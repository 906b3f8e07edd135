"""Simplify the graphs that PyTorch's exporter writes, in a time that grows with their nodes.

The exporter's own step (``optimize=True``) has one rule that goes through the whole graph for each
node. That rule, ``slice_split_rule`` of onnxscript 0.7, takes half of an export at 2,000 nodes, and
more above. Our graphs have a few nodes for each tap of a window, so they are large.
"""

from __future__ import annotations

import onnx_ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

# What PyTorch's decompositions leave behind. Runtimes have fusions of their own.
_RULES = (
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.reshape_reshape_rule,
    rules.materialize_reshape_shape_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.fuse_batchnorm_into_conv_rule,
)


def simplify(model: onnx_ir.Model) -> None:
    """Compute constants, drop nodes without effect, and keep one of several equal nodes.

    Args:
        model: the model. It changes.
    """
    optimizer.inline(model)
    for _ in range(2):  # rules find more after constants are known, and the other way round
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, _RULES)
    onnx_ir.passes.Sequential(
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)

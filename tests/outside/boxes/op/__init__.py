"""An op that the test adds to mmlocal: attention over a window of pixels, with one head."""

from __future__ import annotations

import torch
from torch import Tensor

from boxes.op import reference
from mmlocal.ops.backends import make_backends
from mmlocal.ops.operator import Operator
from mmlocal.ops.registry import Op, register_op

BACKENDS = make_backends(__name__, {torch.float32: 1e-5, torch.float64: 1e-13})
_operator = Operator("box_attention", reference.forward, BACKENDS)


def box_attention(
    value: Tensor, attn: Tensor, *, kernel_size: int, backend: str | None = None
) -> Tensor:
    """``out[c, p] = sum_t softmax(attn)[t, p] * value[c, p + offset(t)]``."""
    return _operator(value, attn, kernel_size, backend=backend)


register_op(Op("box", box_attention, BACKENDS, "boxes.op.analysis"))

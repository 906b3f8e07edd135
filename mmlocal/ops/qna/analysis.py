"""FLOPs of QnA's operator, and the cases that the benchmark times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from mmlocal.ops import cases
from mmlocal.ops.cases import Case, Make, Stage

NUM_QUERIES = 2  # in all published QnA-ViTs


def _attention_flops(
    value_shape: Sequence[int],
    scores_shape: Sequence[int],
    rel_pos_shape: Sequence[int] | None,
    tap_weight_shape: Sequence[int] | None,
    num_queries: int,
    kernel_size: int,
    *args: Any,
    out_shape: Sequence[int],
    **kwargs: Any,
) -> int:
    """Per output, tap and query: one MAC.

    This is the paper's depth-wise convolution of the exponentials times the values. An
    implementation may save work by adding the weights of the queries first, which is not counted.
    The denominator of the softmax is not counted either, as for every softmax.
    """
    pixels = prod(out_shape[-2:])
    return 2 * num_queries * kernel_size**2 * prod(value_shape[:2]) * pixels


# Formulas for torch.utils.flop_counter by operator, see mmlocal.ops.elsa.analysis.
FLOPS: dict[str, Callable[..., int]] = {"mmlocal::qna_attention": _attention_flops}

# Channels and heads of the first stage, and the kernel size. Stage 4 has no QnA.
_MODELS = {
    "tiny": (64, 8, 3),
    "tiny_7x7": (64, 8, 7),
    "small": (64, 8, 3),
    "base": (96, 6, 3),
}


def _stages() -> list[Stage]:
    """Return the blocks of each stage, and its downsampling to the channels of the next stage."""
    return [
        Stage(f"QnA-ViT {arch}", i + 1, channels * 2**j, heads * 2**j, kernel_size, stride)
        for arch, (channels, heads, kernel_size) in _MODELS.items()
        for i in range(3)
        for j, stride in ((i, 1), (i + 1, 2))
    ]


# Sets of shapes by name. Heads have 8 channels, as in most published models.
CASES: dict[str, list[Case]] = {
    "stages": cases.stages("qna", _stages()),
    "figure2": cases.figure2("qna", heads=8),
    "resolution": cases.resolution("qna", heads=8),
    "smoke": [
        Case("qna", "tiny, 3x3", 2, 16, 2, 9, 11, 3),
        Case("qna", "tiny, 3x3, down", 1, 16, 2, 9, 11, 3, stride=2),
    ],
}


def make_inputs(case: Case, make: Make) -> dict[str, Tensor]:
    """Return the tensors of a call by argument."""
    tables, k = NUM_QUERIES * case.heads, case.kernel_size
    return dict(
        value=make(case.batch, case.channels, case.height, case.width),
        scores=make(case.batch, tables, case.height, case.width),
        rel_pos=make(tables, k, k),
        tap_weight=make(tables, k, k),
    )


def settings(case: Case) -> dict[str, Any]:
    """Return the other arguments of a call."""
    k = case.kernel_size
    return dict(num_queries=NUM_QUERIES, kernel_size=k, stride=case.stride, padding=k // 2)


def window_values(case: Case) -> int:
    """Return the number of values in the windows that ``reference`` writes out for all queries."""
    pixels = case.height * case.width // case.stride**2
    return NUM_QUERIES * case.batch * case.channels * pixels * case.kernel_size**2

"""FLOPs of the operator, and the cases that the benchmark times; see ``elsa.analysis``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from mmlocal.ops import cases
from mmlocal.ops.cases import Case, Make, Stage


def _scores_flops(
    query_shape: Sequence[int],
    key_shape: Sequence[int],
    num_heads: int,
    kernel_size: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Per channel of a query and tap: one MAC."""
    return 2 * kernel_size**2 * prod(query_shape)


FLOPS: dict[str, Callable[..., int]] = {"mmlocal::neighborhood_scores": _scores_flops}

# Swin-T with sliding windows instead of its own.
_STAGES = [Stage("Swin-T, sliding", i + 1, 96 * 2**i, 3 * 2**i, kernel_size=7) for i in range(4)]

CASES: dict[str, list[Case]] = {
    "stages": cases.stages("neighborhood", _STAGES),
    "figure2": cases.figure2("neighborhood", heads=2),
    "resolution": cases.resolution("neighborhood", heads=2),
    "smoke": [
        Case("neighborhood", "tiny, 3x3", 2, 16, 2, 9, 11, 3),
        Case("neighborhood", "tiny, 5x5", 1, 16, 2, 9, 11, 5),
    ],
}


def make_inputs(case: Case, make: Make) -> dict[str, Tensor]:
    """Return the tensors of a call by argument."""
    shape = (case.batch, case.channels, case.height, case.width)
    return dict(query=make(*shape), key=make(*shape))


def settings(case: Case) -> dict[str, Any]:
    """Return the other arguments of a call."""
    return dict(num_heads=case.heads, kernel_size=case.kernel_size)


def window_values(case: Case) -> int:
    """Return the number of values in the windows that ``reference`` writes out."""
    return case.batch * case.channels * case.height * case.width * case.kernel_size**2

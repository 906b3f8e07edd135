"""FLOPs of the outlook operator, and the cases that the benchmark times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from mmlocal.ops.cases import Case, Make
from mmlocal.ops.outlook.reference import output_size


def _attention_flops(
    value_shape: Sequence[int],
    attn_shape: Sequence[int],
    num_heads: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Per window, target, source and channel: one MAC."""
    return 2 * prod(attn_shape) * value_shape[1] // num_heads


# Formulas for torch.utils.flop_counter by operator, see mmlocal.ops.elsa.analysis.
FLOPS: dict[str, Callable[..., int]] = {"mmlocal::outlook_attention": _attention_flops}

# Channels and heads of the only stage that has outlook attention. Its map has 8 times fewer pixels
# on a side than the image.
_MODELS = {"VOLO d1": (192, 6), "VOLO d2 = VOLO d3": (256, 8), "VOLO d4 = VOLO d5": (384, 12)}

# Sets of shapes by name.
CASES: dict[str, list[Case]] = {
    "stages": [
        Case("outlook", f"{model}, stage 1 at {image}", batch, *widths, *size, 3, stride=2)
        for image, batch, size in (("224x224", 4, (28, 28)), ("800x1280", 1, (100, 160)))
        for model, widths in _MODELS.items()
    ],
    "smoke": [
        Case("outlook", "tiny, 3x3, stride 2", 2, 16, 2, 9, 11, 3, stride=2),
        Case("outlook", "tiny, 3x3, stride 1", 1, 16, 2, 9, 11, 3),
    ],
}


def _windows(case: Case) -> tuple[int, int]:
    rows, cols = (
        output_size(size, case.kernel_size, case.stride, case.kernel_size // 2)
        for size in (case.height, case.width)
    )
    return rows, cols


def make_inputs(case: Case, make: Make) -> dict[str, Tensor]:
    """Return the tensors of a call by argument."""
    return dict(
        value=make(case.batch, case.channels, case.height, case.width),
        attn=make(case.batch, case.heads * case.kernel_size**4, *_windows(case)),
    )


def settings(case: Case) -> dict[str, Any]:
    """Return the other arguments of a call."""
    k = case.kernel_size
    return dict(num_heads=case.heads, kernel_size=k, stride=case.stride, padding=k // 2)


def window_values(case: Case) -> int:
    """Return the number of values in the windows that ``reference`` writes out."""
    return case.batch * case.channels * prod(_windows(case)) * case.kernel_size**2

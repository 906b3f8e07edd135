"""FLOPs of the grouped convolution, and the cases that the benchmark times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from mmlocal.ops import cases
from mmlocal.ops.cases import Case, Make, Stage
from mmlocal.ops.convolution.reference import GROUP_WIDTH


def _convolution_flops(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    *args: Any,
    out_shape: Sequence[int],
    **kwargs: Any,
) -> int:
    """Per output, tap and channel of a group: one MAC, as PyTorch counts a convolution."""
    return 2 * prod(out_shape) * prod(weight_shape[1:])


# Formulas for torch.utils.flop_counter by operator, see mmlocal.ops.elsa.analysis.
FLOPS: dict[str, Callable[..., int]] = {"mmlocal::grouped_conv2d": _convolution_flops}

# Channels of the convolution in the first stage of the published ELSA-Swins. Tiny and small are
# equal. Their last stage uses window attention instead.
_CHANNELS = {"tiny": 64, "base": 84}


def _stages() -> list[Stage]:
    return [
        Stage(f"ELSA-Swin {arch}", i + 1, channels * 2**i, channels * 2**i // GROUP_WIDTH, 7)
        for arch, channels in _CHANNELS.items()
        for i in range(3)
    ]


# Sets of shapes by name. The heads of a case are its groups.
CASES: dict[str, list[Case]] = {
    "elsa_swin": cases.stages("convolution", _stages()),
    "resolution": cases.resolution("convolution", heads=16),
    "smoke": [
        Case("convolution", "tiny, 3x3", 2, 16, 4, 9, 11, 3),
        Case("convolution", "tiny, 7x7", 1, 16, 4, 9, 11, 7),
    ],
}


def make_inputs(case: Case, make: Make) -> dict[str, Tensor]:
    """Return the tensors of a call by argument."""
    k = case.kernel_size
    return dict(
        x=make(case.batch, case.channels, case.height, case.width),
        weight=make(case.channels, GROUP_WIDTH, k, k),
        bias=make(case.channels),
    )


def settings(case: Case) -> dict[str, Any]:
    """Return the other arguments of a call."""
    return dict(padding=case.kernel_size // 2, groups=case.channels // GROUP_WIDTH)


def window_values(case: Case) -> int:
    """Return the number of values in the windows that ``reference`` writes out."""
    return case.batch * case.channels * case.height * case.width * case.kernel_size**2

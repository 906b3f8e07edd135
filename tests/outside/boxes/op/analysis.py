"""FLOPs and benchmark cases of the op."""

from __future__ import annotations

from math import prod

from torch import Tensor

from mmlocal.ops.cases import Case, Make


def _flops(value_shape, attn_shape, kernel_size, *args, **kwargs) -> int:
    return 2 * kernel_size**2 * prod(value_shape)


FLOPS = {"mmlocal::box_attention": _flops}
CASES = {"smoke": [Case("box", "boxes, 3x3", 1, 8, 1, 7, 9, 3)]}


def make_inputs(case: Case, make: Make) -> dict[str, Tensor]:
    size = (case.height, case.width)
    return dict(
        value=make(case.batch, case.channels, *size),
        attn=make(case.batch, case.kernel_size**2, *size),
    )


def settings(case: Case) -> dict[str, int]:
    return dict(kernel_size=case.kernel_size)


def window_values(case: Case) -> int:
    return case.batch * case.channels * case.height * case.width * case.kernel_size**2

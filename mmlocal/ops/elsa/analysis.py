"""FLOPs of ELSA's operators, and the cases that the benchmark times.

The module of each op has the names ``FLOPS``, ``CASES``, ``make_inputs``, ``settings`` and
``window_values``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from mmlocal.ops import cases
from mmlocal.ops.cases import Case, Make, Stage


def _attention_flops(
    value_shape: Sequence[int],
    attn_shape: Sequence[int],
    ghost_mul_shape: Sequence[int] | None,
    ghost_add_shape: Sequence[int] | None,
    kernel_size: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Per value and tap: one MAC for the sum, and one for the weight if there is a ghost head."""
    steps = 1 if ghost_mul_shape is None and ghost_add_shape is None else 2
    return 2 * steps * kernel_size**2 * prod(value_shape)


def _projected_flops(
    value_shape: Sequence[int],
    attn_shape: Sequence[int],
    proj_weight_shape: Sequence[int],
    proj_bias_shape: Sequence[int] | None,
    ghost_mul_shape: Sequence[int] | None,
    ghost_add_shape: Sequence[int] | None,
    kernel_size: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    """The FLOPs of the attention, plus one MAC per pixel and number of the projection's weight."""
    op = _attention_flops(value_shape, attn_shape, ghost_mul_shape, ghost_add_shape, kernel_size)
    pixels = attn_shape[0] * prod(attn_shape[2:])
    return op + 2 * pixels * prod(proj_weight_shape)


# Formulas for torch.utils.flop_counter by operator. A formula takes the operator's arguments, with
# shapes in place of tensors, and ``out_shape``. One multiply-accumulate (MAC) is two FLOPs.
FLOPS: dict[str, Callable[..., int]] = {
    "mmlocal::elsa_attention": _attention_flops,
    "mmlocal::elsa_attention_projected": _projected_flops,
}

# Embedding dimensions of the published ELSA-Swins. Their last stage uses window attention instead.
_EMBED_DIMS = {"tiny": 96, "small": 96, "base": 128}

_STAGES = [
    Stage(f"ELSA-Swin {arch}", i + 1, dims * 2**i, dims * 2**i // 32, kernel_size=7)
    for arch, dims in _EMBED_DIMS.items()
    for i in range(3)
]

# The op without softmax and ghost head is an involution: the inhomogeneous dynamic depth-wise
# convolution of DWNet. In its 32 heads, 3, 6, 12 and 24 channels share their weights.
_INVOLUTION = "involution"
_INVOLUTIONS = [
    Case("elsa", f"I-DWNet-T, stage {i + 1} at 224x224", 4, 96 * 2**i, 32, side, side, 7,
         variant=_INVOLUTION)
    for i, side in enumerate((56, 28, 14, 7))
]  # fmt: skip

# Sets of shapes by name. Heads have 32 channels, as in the published models.
CASES: dict[str, list[Case]] = {
    "stages": cases.stages("elsa", _STAGES),
    "figure2": cases.figure2("elsa", heads=2),
    "resolution": cases.resolution("elsa", heads=2),
    "involution": _INVOLUTIONS,
    "smoke": [
        Case("elsa", "tiny, 3x3", 2, 16, 2, 9, 11, 3),
        Case("elsa", "tiny, 5x5", 1, 16, 2, 9, 11, 5),
        Case("elsa", "tiny involution, 3x3", 1, 16, 4, 9, 11, 3, variant=_INVOLUTION),
    ],
}


def make_inputs(case: Case, make: Make) -> dict[str, Tensor]:
    """Return the tensors of a call by argument. The ghost head is additive only, as published."""
    size, k = (case.height, case.width), case.kernel_size
    value = make(case.batch, case.channels, *size)
    attn = make(case.batch, case.heads * k**2, *size)
    tensors = dict(value=value, attn=attn)
    return tensors if case.variant else tensors | dict(ghost_add=make(case.channels, k, k))


def settings(case: Case) -> dict[str, Any]:
    """Return the other arguments of a call."""
    return dict(kernel_size=case.kernel_size, softmax=not case.variant)


def window_values(case: Case) -> int:
    """Return the number of values in the windows that ``reference`` writes out."""
    return case.batch * case.channels * case.height * case.width * case.kernel_size**2

"""Deformable attention from offsets and logits in C++, by the functions of ``cpp``.

The kernels compute positions and weights on the way. They write neither of them.
"""

from __future__ import annotations

from torch import Tensor

from mmlocal.ops.deformable.cpp import backward_samples, forward_samples


def forward(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention_from_offsets`."""
    return forward_samples(
        value, reference_points, sampling_offsets, attention_logits, spatial_shapes, padding_mode
    )


def backward(
    grad: Tensor,
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
    needs_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of the four tensors, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    return backward_samples(
        grad,
        value,
        reference_points,
        sampling_offsets,
        attention_logits,
        spatial_shapes,
        padding_mode,
        needs_grad,
    )

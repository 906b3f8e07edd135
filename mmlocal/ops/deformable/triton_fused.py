"""Deformable attention from offsets and logits as Triton kernels; see ``triton_impl``."""

from __future__ import annotations

from torch import Tensor

from mmlocal.ops.deformable.triton_impl import Call


def forward(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention_from_offsets`."""
    inputs = (value, sampling_offsets, attention_logits, reference_points)
    return Call(*inputs, spatial_shapes, padding_mode).forward()


def backward(
    grad: Tensor,
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the four tensors after ``grad``, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    inputs = (value, sampling_offsets, attention_logits, reference_points)
    call = Call(*inputs, spatial_shapes, padding_mode)
    need_value, need_reference, need_offsets, need_logits = needs_grad
    needed = (need_value, need_offsets, need_logits, need_reference)
    grad_value, grad_offsets, grad_logits, grad_reference = call.backward(grad, needed)
    return grad_value, grad_reference, grad_offsets, grad_logits

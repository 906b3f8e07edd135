"""The ELSA op in C++ for CPUs, see ``mmlocal/ops/csrc``: the channels of a pixel in vectors.

Works on channels-last maps, which are used as they are if the channels of a head fill whole vectors
(16 floats with AVX-512); other maps are copied. Half precision is converted to float32 and back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.ops.extension import extension
from mmlocal.ops.layout import new_map, to_layout

# Parts in which the gradients of the ghost heads are summed, whatever the number of threads.
_PARTS = 16


def _pixels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``(B, C, H, W)`` as ``(B, H, W, C)`` with the channels innermost; a view if possible."""
    x = x.to(dtype).permute(0, 2, 3, 1)
    return x if x.stride(3) == 1 else x.contiguous()


class _Call:
    """The inputs of one call as the extension takes them."""

    def __init__(
        self,
        value: Tensor,
        attn: Tensor,
        ghost_mul: Tensor | None,
        ghost_add: Tensor | None,
        kernel_size: int,
        dilation: int,
        softmax: bool,
    ) -> None:
        self.dtype = torch.promote_types(value.dtype, torch.float32)
        self.taps = kernel_size**2
        self.heads = attn.shape[1] // self.taps
        self.head_dims = value.shape[1] // self.heads
        lanes = extension.lanes(self.dtype == torch.float64)
        self.pad = -self.head_dims % lanes
        self.value = self.padded(value)
        self.attn = _pixels(attn, self.dtype)
        mul, add = self._table(ghost_mul), self._table(ghost_add)
        self.args = (self.value, self.attn, mul, add, kernel_size, dilation, softmax)

    def padded(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` as ``(B, H, W, channels)``, where each head fills whole vectors."""
        x = _pixels(x, self.dtype)
        if self.pad == 0:
            return x
        x = F.pad(x.unflatten(3, (self.heads, self.head_dims)), (0, self.pad)).flatten(3)
        return x.contiguous()  # F.pad takes some maps of one column for channels-last

    def unpadded(self, x: Tensor) -> Tensor:
        """``(..., channels)`` without what ``padded`` added."""
        if self.pad == 0:
            return x
        heads = x.unflatten(-1, (self.heads, self.head_dims + self.pad))
        return heads[..., : self.head_dims].flatten(-2)

    def _table(self, ghost: Tensor | None) -> Tensor | None:
        """``(C, k, k)`` as ``(taps, channels)``."""
        if ghost is None:
            return None
        ghost = ghost.to(self.dtype).reshape(self.heads, self.head_dims, self.taps).permute(2, 0, 1)
        return F.pad(ghost, (0, self.pad)).flatten(1).contiguous()

    def target(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The tensor to return for ``like``, and its ``(B, H, W, channels)`` view to write to, or a
        copy where there is no such view."""
        result = new_map(like, like.shape)
        pixels = result.permute(0, 2, 3, 1)
        if self.dtype == like.dtype and self.pad == 0 and pixels.stride(3) == 1:
            return result, pixels
        return result, torch.empty_like(self.value, memory_format=torch.contiguous_format)


def forward(
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    softmax: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.elsa.elsa_attention`."""
    if value.numel() == 0:
        return new_map(value, value.shape)
    call = _Call(value, attn, ghost_mul, ghost_add, kernel_size, dilation, softmax)
    out, pixels = call.target(value)
    extension.elsa_forward(*call.args, pixels)
    return _finish(call, out, pixels)


def _finish(call: _Call, result: Tensor, pixels: Tensor) -> Tensor:
    if pixels.data_ptr() != result.data_ptr():
        result.copy_(call.unpadded(pixels).permute(0, 3, 1, 2))
    return result


def backward(
    grad: Tensor,
    value: Tensor,
    attn: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
    softmax: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``value, attn, ghost_mul, ghost_add``, ``None`` where not needed.

    The softmax is computed again rather than kept since the forward pass.
    """
    inputs = (value, attn, ghost_mul, ghost_add)
    if value.numel() == 0:
        return tuple(
            torch.zeros_like(to_layout(x, x) if x.dim() == 4 else x.contiguous()) if need else None
            for x, need in zip(inputs, needs_grad, strict=True)
        )
    call = _Call(value, attn, ghost_mul, ghost_add, kernel_size, dilation, softmax)
    need_value, need_attn, *need_ghosts = needs_grad
    grad_value = value_pixels = attn_pixels = None
    if need_value:
        grad_value, value_pixels = call.target(value)
    # One map for the logits (where they had to be copied), their softmax and their gradient.
    weights = call.attn
    if softmax and call.attn.data_ptr() == attn.data_ptr():
        weights = torch.empty(call.attn.shape, dtype=call.dtype)
    if need_attn:
        attn_pixels = weights if softmax else torch.empty(call.attn.shape, dtype=call.dtype)
    sums = [
        call.value.new_zeros(_PARTS, call.taps, call.value.shape[3]) if need else None
        for need in need_ghosts
    ]
    extension.elsa_backward(
        call.padded(grad), *call.args, weights, value_pixels, attn_pixels, *sums
    )

    def ghost_grad(sums: Tensor | None, ghost: Tensor | None) -> Tensor | None:
        if sums is None:
            return None
        table = call.unpadded(sums.sum(dim=0)).t().contiguous()
        return table.view(ghost.shape).to(ghost.dtype)

    return (
        _finish(call, grad_value, value_pixels) if need_value else None,
        to_layout(attn_pixels.permute(0, 3, 1, 2).to(attn.dtype), attn) if need_attn else None,
        ghost_grad(sums[0], ghost_mul),
        ghost_grad(sums[1], ghost_add),
    )

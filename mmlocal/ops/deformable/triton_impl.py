"""Deformable attention as Triton kernels: the samples of a query and head together.

Both operators run the same two kernels. Neither locations nor a softmax is written: both passes
compute them from the inputs. Beside its results, a call holds

- a copy of ``value`` if it is not contiguous, or if a head does not fill whole blocks of 16 bytes;
- in the backward pass the sum for ``value`` in float32, or under
  ``torch.use_deterministic_algorithms(True)`` 12 bytes for each of its numbers;
- a gradient of ``reference_points`` for each head and map, in float32.

The gradient of ``value`` is summed by atomic additions, whose order is not fixed. Under
``torch.use_deterministic_algorithms(True)`` they are additions of integers, which give the same
bits in any order. There are no such additions for float64.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mmlocal.ops.deformable.triton_backward import backward_kernel
from mmlocal.ops.deformable.triton_kernels import forward_kernel
from mmlocal.ops.layout import to_layout
from mmlocal.ops.triton_common import REGISTERS, accumulator

# A program reads so many bytes at once, if they are aligned.
_VECTOR = 16
# The most points of a map that a program takes at a time.
_POINTS = 16
# The most logits that a program takes at a time.
_LOGITS = 1024
# How many numbers the (points, channels) tile of a warp has: in the forward pass, in the backward
# pass, and there with additions of integers. More would not fit the registers.
_FORWARD, _BACKWARD, _DETERMINISTIC = 512, 256, 128
# The largest first dimension of a grid is 2**31 - 1.
_PROGRAMS = 2**30


@functools.lru_cache(maxsize=256)
def _table(shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return height, width and first pixel of each map. A copy to a GPU waits, so it is kept."""
    first, rows = 0, []
    for height, width in zip(shapes[::2], shapes[1::2], strict=True):
        rows.append((height, width, first))
        first += height * width
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int64, device=device)


class Call:
    """Arguments of the kernels for one call.

    Args:
        value: ``(B, S, heads, ch)``.
        places: ``(B, Q, heads, maps, points, 2)``, locations or offsets.
        weights: ``(B, Q, heads, maps, points)``, weights or logits.
        reference: ``(B, Q, maps, 2)``, or ``None`` if ``places`` are locations.
        spatial_shapes: height and width of each map, one after the other.
        padding_mode: ``"zeros"`` or ``"border"``.
    """

    def __init__(
        self,
        value: Tensor,
        places: Tensor,
        weights: Tensor,
        reference: Tensor | None,
        spatial_shapes: Sequence[int],
        padding_mode: str,
    ) -> None:
        self.value = value
        batches, pixels, heads, channels = value.shape
        queries, maps, points = places.shape[1], *places.shape[3:5]
        vector = _VECTOR // value.element_size()
        padded = triton.cdiv(channels, vector) * vector
        # Two blocks of channels, if they leave fewer unused.
        main = triton.next_power_of_2(padded)
        rest = triton.next_power_of_2(padded - main // 2)
        main, rest = (main // 2, rest) if main // 2 + rest < main else (main, 0)
        padded = main + rest
        if padded > channels:
            value = F.pad(value, (0, padded - channels))
        strides = (0, 0, 0, 0) if reference is None else reference.stride()
        table = _table(tuple(spatial_shapes), value.device)
        tensors = (value.contiguous(), places.contiguous(), weights.contiguous())
        self.inputs = (*tensors, reference, strides, table)
        self.rows = batches * queries * heads
        self.size = (self.rows, queries, pixels)
        self.grid = (min(self.rows, _PROGRAMS), triton.cdiv(self.rows, _PROGRAMS))
        self.constants = dict(
            HEADS=heads,
            CHANNELS=channels,
            PADDED=padded,
            MAIN=main,
            REST=rest,
            MAPS=maps,
            POINTS=points,
            BLOCK_N=min(_LOGITS, triton.next_power_of_2(maps * points)),
            BORDER=padding_mode == "border",
            ACC=accumulator(value.dtype)[1],
        )

    def _tile(self, numbers: int, kept: bool = False) -> dict:
        """Return the number of points of a tile of ``numbers``, and of warps.

        Args:
            numbers: for a computation in float32.
            kept: whether a program keeps a number of each sample.
        """
        main, maps, points = (self.constants[n] for n in ("MAIN", "MAPS", "POINTS"))
        if self.constants["ACC"] == tl.float64:
            numbers //= 2
        block = max(1, min(_POINTS, numbers // main, triton.next_power_of_2(points)))
        warps, tile = main // numbers, dict(BLOCK_S=block)
        if kept:
            tile["BLOCK_B"] = triton.next_power_of_2(maps * triton.cdiv(points, block))
            warps = max(warps, tile["BLOCK_B"] * block // _LOGITS)
        return tile | dict(num_warps=max(1, min(8, warps)))

    def forward(self) -> Tensor:
        """Return the output ``(B, Q, heads * ch)``."""
        value, places = self.inputs[:2]
        heads, channels = self.constants["HEADS"], self.constants["CHANNELS"]
        out = value.new_empty(*places.shape[:2], heads * channels)
        if self.rows:
            with torch.cuda.device_of(value):
                forward_kernel[self.grid](
                    *self.inputs, out, *self.size, **self.constants, **self._tile(_FORWARD)
                )
        return out

    def backward(
        self, grad: Tensor, needs_grad: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of value, places, weights and reference points."""
        need_value, need_places, need_weights, need_reference = needs_grad
        value, places, weights, reference, *_ = self.inputs
        dtype = accumulator(value.dtype)[0]
        grad = grad.contiguous()
        sums = special = step = grad_value = grad_reference = by_head = None
        if need_value:
            sums = torch.zeros_like(value, dtype=dtype)
            if torch.are_deterministic_algorithms_enabled() and _has_fixed_point(dtype):
                step, special = self._step(grad), sums
                sums = torch.zeros_like(value, dtype=torch.int64)
        grad_places = places.new_empty(places.shape) if need_places else None
        grad_weights = weights.new_empty(weights.shape) if need_weights else None
        if need_reference:
            by_head = value.new_empty(*places.shape[:4], 2, dtype=dtype)
        tile = self._tile(_BACKWARD if special is None else _DETERMINISTIC, kept=True)
        if self.rows:
            with torch.cuda.device_of(value):
                backward_kernel[self.grid](
                    grad, *self.inputs, sums, special, step, grad_places, grad_weights, by_head,
                    *self.size, **self.constants, **tile, **REGISTERS,
                )  # fmt: skip
        if sums is not None:
            if special is not None and step is not None:
                sums = special.add_(sums.to(dtype).div_(step))
            grad_value = to_layout(sums[..., : self.value.shape[3]], self.value)
        if by_head is not None and reference is not None:
            grad_reference = to_layout(by_head.sum(dim=2), reference)
        return grad_value, grad_places, grad_weights, grad_reference

    def _step(self, grad: Tensor) -> Tensor:
        """Return by how much to multiply numbers before they become integers: a power of 2.

        One query adds at most its weights to a pixel, so the sum for a pixel is below 2**62.
        """
        _, places, weights, reference, *_ = self.inputs
        bound = _largest(grad)
        if reference is None:  # a softmax is at most 1
            bound = bound * _largest(weights)
        # Infinity, and what is larger than float32 can hold, is not added.
        exponent = torch.frexp(bound)[1].clamp(max=128)
        count = places.shape[1] * self.constants["POINTS"]
        room = 61 - math.ceil(math.log2(max(1, count)))
        # The exponent of a float32 is in its bits from 23 on.
        return ((room - exponent).clamp(max=126) + 127 << 23).view(torch.float32)


def _largest(x: Tensor) -> Tensor:
    """Return the largest finite magnitude, in float64."""
    if not x.numel():
        return x.new_zeros((), dtype=torch.float64)
    return torch.where(x.isfinite(), x, 0).abs().amax().double()


def _has_fixed_point(dtype: torch.dtype) -> bool:
    """Return whether sums in this dtype can be deterministic.

    Raises:
        RuntimeError: they cannot, and PyTorch was not told to only warn.
    """
    if dtype != torch.float64:
        return True
    message = (
        "the backend 'triton' of deformable attention has no deterministic gradient of a value in "
        "float64; pass backend='eager', a value in float32, or "
        "torch.use_deterministic_algorithms(True, warn_only=True)"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
    return False


def forward(
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
) -> Tensor:
    """See :func:`mmlocal.ops.deformable.deformable_attention`."""
    call = Call(value, sampling_locations, attention_weights, None, spatial_shapes, padding_mode)
    return call.forward()


def backward(
    grad: Tensor,
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    spatial_shapes: list[int],
    padding_mode: str,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``value, sampling_locations, attention_weights``, ``None`` where not needed."""
    call = Call(value, sampling_locations, attention_weights, None, spatial_shapes, padding_mode)
    return call.backward(grad, [*needs_grad, False])[:3]

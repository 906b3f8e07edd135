"""Deformable attention: each query mixes a few points of several maps, at positions of its own.

To add a backend, write a module with ``forward`` and ``backward`` for each of the two operators,
with the signatures in ``eager`` and ``eager_fused``, and name the modules in ``BACKENDS`` and
``_FUSED``.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmlocal.ops.backends import make_backends
from mmlocal.ops.checks import check_tensors
from mmlocal.ops.deformable import plain, reference
from mmlocal.ops.operator import Operator
from mmlocal.ops.registry import Op, register_op

__all__ = ["BACKENDS", "deformable_attention", "deformable_attention_from_offsets"]

BACKENDS = make_backends(
    __name__,
    # In half precision, only the result is rounded. All else is in float32. A position of float32
    # is as exact as the width of its map in pixels allows.
    {torch.float64: 5e-14, torch.float32: 1.5e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    triton=dict(
        description="Triton kernels, points of a query together",
        # The gradient of ``value`` is a sum by atomic additions. It is deterministic under
        # torch.use_deterministic_algorithms(True).
        deterministic=False,
    ),
    cpp=dict(description="C++ extension, vectors of channels"),
    eager=dict(description="plain PyTorch, a chunk of queries at a time"),
    reference=dict(description="the definition, every sample written out"),
)
# The modules of the fused operator.
_FUSED = tuple(
    replace(b, module=f"{__name__}.{module}")
    for b, module in zip(
        BACKENDS, ("triton_fused", "cpp_fused", "eager_fused", "reference"), strict=True
    )
)
_PADDINGS = ("zeros", "border")


def _empty_output(value: Tensor, positions: Tensor, *args: Any) -> Tensor:
    return value.new_empty(value.shape[0], positions.shape[1], value.shape[2] * value.shape[3])


_operator = Operator(
    "deformable_attention", reference.forward, BACKENDS, fake=_empty_output, plain=plain.forward
)
_fused_operator = Operator(
    "deformable_attention_from_offsets",
    reference.forward_from_offsets,
    _FUSED,
    fake=_empty_output,
    plain=plain.forward_from_offsets,
)


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """Sum up samples of several maps at given locations, with given weights.

    For channel ``c`` of head ``n`` and query ``q``, over the maps ``m`` and their points ``p``::

        out[q, n, c] = sum of weights[q, n, m, p] * bilinear(value[map m, n, c], x, y)
        x = locations[q, n, m, p, 0] * width[m] - 0.5
        y = locations[q, n, m, p, 1] * height[m] - 0.5

    ``bilinear`` interpolates between the four pixels around ``(x, y)``. Pixel ``(0, 0)`` is the
    centre of the first pixel, as in ``grid_sample`` with ``align_corners=False``.

    Args:
        value: ``(B, S, heads, channels per head)``, any float dtype. All pixels of the first map
            come first, row by row. ``S`` is the sum of ``height * width`` of all maps.
        spatial_shapes: height and width of each map in pixels: pairs of ints, or an int64 tensor
            ``(maps, 2)``. A tensor is read at each call, so prefer ints on a GPU and when you
            compile.
        sampling_locations: ``(B, Q, heads, maps, points, 2)``, any float dtype: ``(x, y)`` as
            shares of width and height. 0 and 1 are the outer edges of the map. In half precision,
            a location is only as exact as its dtype.
        attention_weights: ``(B, Q, heads, maps, points)``, any float dtype. They need not sum to 1.
        padding_mode: what lies outside a map. ``"zeros"``: zeros, as in mmcv. ``"border"``: the
            nearest pixel of the map, as if locations were cut to the centres of border pixels. The
            gradient of a coordinate that is cut is 0.
        backend: name of a backend in ``BACKENDS``. ``None`` takes the name in the environment
            variable ``MMLOCAL_BACKEND`` or, if that is not set, the fastest one that can run.

    Returns:
        ``(B, Q, heads * channels per head)``, dtype of ``value``.

    Raises:
        TypeError: a tensor is not floating point, or ``spatial_shapes`` is not made of ints.
        ValueError: shapes that do not fit each other, a map without pixels, no head, channel, map
            or point, tensors on several devices, or unknown ``padding_mode`` or ``backend``.
        RuntimeError: the named backend cannot run here, or it lacks the derivatives in use. All
            backends have first derivatives, ``torch.func.grad`` and ``vmap``. ``reference`` also
            has higher and forward-mode derivatives.

    Note:
        float16 and bfloat16 inputs are accumulated in float32. A location on the centre of a pixel
        has the slope towards the next pixel to its right and below. A location that is NaN makes
        its query's head NaN, and its own gradient is 0. An infinite one lies outside the map.

        In the backend ``triton``, the last digits of the gradient of ``value`` differ from run to
        run, except under ``torch.use_deterministic_algorithms(True)``. Then this gradient takes
        longer, and is refused in float64.

        ``torch.compile`` and ``torch.export`` see one node.

    Source:
        Deformable DETR, Zhu et al. 2021, https://arxiv.org/abs/2010.04159, section 4.1, eq. 3,
        with padding by zeros. Efficient Inter-Task Attention for Multitask Transformer Models,
        Bohn et al. 2025, https://arxiv.org/abs/2508.04422, clips to the border.
    """
    tensors = dict(
        value=value, sampling_locations=sampling_locations, attention_weights=attention_weights
    )
    check_tensors("deformable_attention", {}, **tensors)
    sizes = _check_value(value, spatial_shapes, padding_mode)
    maps = len(sizes) // 2
    _check_weights(value, "attention_weights", attention_weights, maps)
    _check_shape(
        "sampling_locations", sampling_locations, (*attention_weights.shape, 2), "attention_weights"
    )
    return _operator(
        value, sampling_locations, attention_weights, sizes, padding_mode, backend=backend
    )


def deformable_attention_from_offsets(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]] | Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """Compute locations and weights from the results of two projections, then attend.

    This is :func:`deformable_attention` with ::

        weights[q, n] = softmax(logits[q, n])  over all points of all maps together
        x = reference[q, m, 0] * width[m] - 0.5 + offsets[q, n, m, p, 0]
        y = reference[q, m, 1] * height[m] - 0.5 + offsets[q, n, m, p, 1]

    The backends ``cpp`` and ``triton`` write neither locations nor weights, forward and backward.

    Args:
        value: ``(B, S, heads, channels per head)``, as in :func:`deformable_attention`.
        spatial_shapes: height and width of each map, as in :func:`deformable_attention`.
        reference_points: ``(B or 1, Q, maps or 1, 2)``, any float dtype: ``(x, y)`` as shares of
            width and height. A 1 means that all samples or all maps share the points.
        sampling_offsets: ``(B, Q, heads, maps, points, 2)``, any float dtype: ``(x, y)`` in pixels
            of each map.
        attention_logits: ``(B, Q, heads, maps, points)``, any float dtype.
        padding_mode: what lies outside a map, ``"zeros"`` or ``"border"``, as in
            :func:`deformable_attention`.
        backend: name of a backend, or ``None``, as in :func:`deformable_attention`.

    Returns:
        ``(B, Q, heads * channels per head)``, dtype of ``value``.

    Raises:
        TypeError: for a reason of :func:`deformable_attention`.
        ValueError: for a reason of :func:`deformable_attention`.
        RuntimeError: for a reason of :func:`deformable_attention`.

    Note:
        The sum of a reference point and its offset is in float32 at least, so offsets in half
        precision lose little. All else is as in :func:`deformable_attention`.
    """
    tensors = dict(
        value=value,
        reference_points=reference_points,
        sampling_offsets=sampling_offsets,
        attention_logits=attention_logits,
    )
    check_tensors("deformable_attention_from_offsets", {}, **tensors)
    sizes = _check_value(value, spatial_shapes, padding_mode)
    maps = len(sizes) // 2
    _check_weights(value, "attention_logits", attention_logits, maps)
    _check_shape(
        "sampling_offsets", sampling_offsets, (*attention_logits.shape, 2), "attention_logits"
    )
    batch, queries = attention_logits.shape[:2]
    points = reference_points
    if (
        points.dim() != 4
        or points.shape[0] not in (batch, 1)
        or points.shape[1] != queries
        or points.shape[2] not in (maps, 1)
        or points.shape[3] != 2
    ):
        raise ValueError(
            f"reference_points must have shape (B or 1, Q, maps or 1, 2) = ({batch} or 1, "
            f"{queries}, {maps} or 1, 2), got {tuple(points.shape)}"
        )
    # Autograd adds up the gradients of what is shared, so half precision would not do.
    exact = torch.float64 if points.dtype == torch.float64 else torch.float32
    points = points.to(exact).expand(batch, queries, maps, 2)
    return _fused_operator(
        value, points, sampling_offsets, attention_logits, sizes, padding_mode, backend=backend
    )


def _check_value(
    value: Tensor, spatial_shapes: Sequence[Sequence[int]] | Tensor, padding_mode: str
) -> list[int]:
    """Return the height and the width of each map in one list."""
    if padding_mode not in _PADDINGS:
        raise ValueError(f"padding_mode must be 'zeros' or 'border', got {padding_mode!r}")
    sizes = _read_sizes(spatial_shapes)
    if value.dim() != 4:
        raise ValueError(
            "value must have the 4 dimensions (B, S, heads, channels per head), "
            f"got {tuple(value.shape)}"
        )
    if 0 in value.shape[2:]:
        raise ValueError(
            f"value must have at least one head and one channel, got {tuple(value.shape)}"
        )
    rows = sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True))
    if value.shape[1] != rows:
        raise ValueError(
            f"value must have a row for each of the {rows} pixels of spatial_shapes, "
            f"got {value.shape[1]} rows"
        )
    return sizes


def _read_sizes(spatial_shapes: Sequence[Sequence[int]] | Tensor) -> list[int]:
    meaning = "spatial_shapes must be pairs of ints (height, width), one for each map"
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{meaning}, got a tensor of {spatial_shapes.dtype}")
        if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2:
            raise ValueError(f"{meaning}, got a tensor of shape {tuple(spatial_shapes.shape)}")
        pairs = spatial_shapes.tolist()
    else:
        try:
            pairs = [tuple(pair) for pair in spatial_shapes]
        except TypeError as error:
            raise TypeError(f"{meaning}, got {spatial_shapes!r}") from error
    sizes = [side for pair in pairs for side in pair]
    if not all(isinstance(x, (numbers.Integral, torch.SymInt)) for x in sizes):
        raise TypeError(f"{meaning}, got {pairs}")
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{meaning}, got {pairs}")
    if any(side < 1 for side in sizes):
        raise ValueError(f"spatial_shapes must be at least 1 pixel high and wide, got {pairs}")
    # Whole numbers of other libraries become ints. Symbols of a compiler stay symbols.
    return [side if isinstance(side, torch.SymInt) else int(side) for side in sizes]  # type: ignore[misc]


def _check_weights(value: Tensor, name: str, weights: Tensor, maps: int) -> None:
    batch, _, heads, _ = value.shape
    if weights.dim() != 5 or (weights.shape[0], *weights.shape[2:4]) != (batch, heads, maps):
        raise ValueError(
            f"{name} must have shape (B, Q, heads, maps, points) = ({batch}, Q, {heads}, {maps}, "
            f"points) for a value of {tuple(value.shape)}, got {tuple(weights.shape)}"
        )
    if weights.shape[4] == 0:
        raise ValueError(f"{name} must have at least one point, got {tuple(weights.shape)}")


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...], other: str) -> None:
    if x.shape != expected:
        raise ValueError(
            f"{name} must have the shape of {other} and a last dimension of 2 = {expected}, "
            f"got {tuple(x.shape)}"
        )


register_op(
    Op(
        "deformable",
        deformable_attention,
        BACKENDS,
        "mmlocal.ops.deformable.analysis",
        variants=(deformable_attention_from_offsets,),
    )
)

"""Calls of all ops with odd sizes, as data: shapes of tensors and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from mmlocal import ops
from mmlocal.ops import OPS
from mmlocal.ops.backends import Backend

# Positions are whole multiples of this number, and offsets of pixels are odd multiples of a part of
# a pixel. Every dtype holds them, so that rounding moves no sample to the other side of a pixel.
_GRID = 128


@dataclass(frozen=True)
class Problem:
    """One call of an op.

    Args:
        op: name out of ``OPS``.
        function: name of the public function.
        name: the settings in words; no two problems of a function have the same.
        shapes: tensors by argument, and their shapes.
        settings: the other arguments.
        maps: tensors whose rows of pixels lie along the last dimension but one. In an op without
            windows, tensors whose queries lie along dimension 1. All others are tables.
    """

    op: str
    function: str
    name: str
    shapes: dict[str, tuple[int, ...]]
    settings: dict
    maps: tuple[str, ...] = field(default=())

    @property
    def call(self) -> Callable[..., Tensor]:
        """The public function."""
        return getattr(ops, self.function)

    @property
    def backend(self) -> Backend:
        """The backend ``triton`` of the op."""
        return next(b for b in OPS[self.op].backends if b.name == "triton")

    @property
    def output_shape(self) -> torch.Size:
        """Shape of the output."""
        like = {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}
        return self.call(**like, **self.settings, backend="eager").shape

    @property
    def elements(self) -> int:
        """Number of elements of the largest tensor, input or output."""
        return max(map(prod, (*self.shapes.values(), self.output_shape)))

    def make(
        self, device: str, dtype: torch.dtype, channels_last: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Make random tensors, and a random gradient of the output.

        Args:
            device: device of the tensors.
            dtype: data type of the tensors.
            channels_last: whether maps are channels-last in memory.
        """
        generator = torch.Generator(device).manual_seed(0)
        settings = dict(generator=generator, device=device, dtype=dtype)
        last = channels_last and self.op != "deformable"
        tensors = {
            name: _randn(shape, last and name in self.maps, settings)
            for name, shape in self.shapes.items()
        }
        for name, x in tensors.items():
            if name in ("sampling_locations", "reference_points"):
                x.mul_(_GRID / 4).floor_().div_(_GRID).add_(0.5)
            elif name == "sampling_offsets":
                x.mul_(16).floor_().add_(0.5).div_(8)
            elif name == "proj_weight":
                x.div_(x.shape[1] ** 0.5)  # logits of about 1
        return tensors, _randn(self.output_shape, last, settings)


def _randn(shape: Sequence[int], channels_last: bool, settings: dict) -> Tensor:
    if not channels_last or len(shape) != 4:  # the queries of QnA may have a dimension
        return torch.randn(*shape, **settings)
    batch, channels, height, width = shape
    return torch.randn(batch, height, width, channels, **settings).permute(0, 3, 1, 2)


def elsa(
    size: tuple[int, ...], k: int, *, mul: bool = False, dims: int = 0, **settings: object
) -> Problem:
    """ELSA, with the projection of ``dims`` features to logits if ``dims`` is not 0.

    Args:
        size: batch, heads, channels of a head, height, width.
        k: width of the window.
        mul: whether there is a multiplicative ghost head beside the additive one.
        dims: channels of the features.
        **settings: further arguments of the function.
    """
    batch, heads, per_head, height, width = size
    channels, logits = heads * per_head, heads * k * k
    shapes: dict[str, tuple[int, ...]] = dict(value=(batch, channels, height, width))
    if dims:
        shapes |= dict(features=(batch, dims, height, width), proj_weight=(logits, dims))
        shapes |= dict(proj_bias=(logits,))
    else:
        shapes |= dict(attn=(batch, logits, height, width))
    ghosts = ("ghost_mul", "ghost_add") if mul else ("ghost_add",)
    shapes |= dict.fromkeys(ghosts, (channels, k, k))
    function = "elsa_attention_projected" if dims else "elsa_attention"
    name = _name(size, k, dict(mul=mul) | settings)
    maps = ("value", "features", "attn")
    return Problem("elsa", function, name, shapes, dict(kernel_size=k) | settings, maps)


def neighborhood(size: tuple[int, ...], k: int, **settings: object) -> Problem:
    """Scores of neighbours.

    Args:
        size: batch, heads, channels of a head, height, width.
        k: width of the window.
        **settings: further arguments of the function.
    """
    batch, heads, per_head, height, width = size
    maps = ("query", "key")
    shapes = dict.fromkeys(maps, (batch, heads * per_head, height, width))
    name, settings = _name(size, k, settings), dict(num_heads=heads, kernel_size=k) | settings
    return Problem("neighborhood", "neighborhood_scores", name, shapes, settings, maps)


def qna(
    size: tuple[int, ...], k: int, *, queries: int = 2, stride: int = 1, **settings: object
) -> Problem:
    """QnA.

    Args:
        size: batch, heads, channels of a head, height, width.
        k: width of the window.
        queries: number of queries.
        stride: distance of windows in pixels.
        **settings: further arguments of the function.
    """
    batch, heads, per_head, height, width = size
    tables = dict.fromkeys(("rel_pos", "tap_weight"), (queries * heads, k, k))
    maps = dict(
        value=(batch, heads * per_head, height, width),
        scores=(batch, queries * heads, height, width),
    )
    name = _name(size, k, dict(queries=queries, stride=stride) | settings)
    settings = dict(num_queries=queries, kernel_size=k, stride=stride, padding=k // 2) | settings
    return Problem("qna", "qna_attention", name, maps | tables, settings, tuple(maps))


def outlook(size: tuple[int, ...], k: int, *, stride: int = 1, **settings: object) -> Problem:
    """Outlook attention.

    Args:
        size: batch, heads, channels of a head, height, width.
        k: width of the window.
        stride: distance of windows in pixels.
        **settings: further arguments of the function.
    """
    batch, heads, per_head, *sides = size
    windows = ((side + 2 * (k // 2) - k) // stride + 1 for side in sides)
    shapes = dict(value=(batch, heads * per_head, *sides), attn=(batch, heads * k**4, *windows))
    name = _name(size, k, dict(stride=stride) | settings)
    settings = dict(num_heads=heads, kernel_size=k, stride=stride, padding=k // 2) | settings
    return Problem("outlook", "outlook_attention", name, shapes, settings, tuple(shapes))


def deformable(
    size: tuple[int, ...], sides: tuple[tuple[int, int], ...], *, fused: bool, padding: str
) -> Problem:
    """Deformable attention.

    Args:
        size: batch, queries, heads, channels of a head, points.
        sides: height and width of each map.
        fused: whether the call starts from offsets and logits.
        padding: what lies outside a map.
    """
    batch, queries, heads, per_head, points = size
    samples = (batch, queries, heads, len(sides), points)
    shapes: dict[str, tuple[int, ...]] = dict(
        value=(batch, sum(h * w for h, w in sides), heads, per_head)
    )
    if fused:
        shapes |= dict(reference_points=(batch, queries, len(sides), 2))
        shapes |= dict(sampling_offsets=(*samples, 2), attention_logits=samples)
    else:
        shapes |= dict(sampling_locations=(*samples, 2), attention_weights=samples)
    function = "deformable_attention_from_offsets" if fused else "deformable_attention"
    name = f"{'x'.join(map(str, size))}, {len(sides)} maps, {padding}"
    settings = dict(spatial_shapes=sides, padding_mode=padding)
    return Problem("deformable", function, name, shapes, settings, tuple(shapes)[1:])


def _name(size: tuple[int, ...], k: int, settings: dict) -> str:
    changed = [f"{name}={x}" for name, x in settings.items() if x is not False]
    return ", ".join(["x".join(map(str, size)), f"{k}x{k}", *changed])


_MAPS = ((27, 35), (14, 18), (7, 9))


def odd_problems() -> list[Problem]:
    """Problems for a GPU. The first one of each function is as in a published model."""
    return [
        elsa((2, 3, 32, 29, 37), 7, dims=64, lam=0),
        elsa((2, 3, 32, 29, 37), 7, lam=0),
        qna((2, 8, 8, 29, 37), 3),
        deformable((2, 301, 4, 70, 16), _MAPS * 4, fused=True, padding="border"),
        neighborhood((2, 3, 32, 29, 37), 7),
        outlook((2, 6, 32, 29, 37), 3, stride=2),
        deformable((2, 301, 4, 70, 16), _MAPS * 4, fused=False, padding="border"),
        qna((1, 16, 8, 29, 37), 7, stride=2),
        elsa((1, 3, 5, 17, 13), 5, dims=33, mul=True, dilation=2),
        elsa((1, 4, 48, 19, 23), 5, mul=True, dilation=2, softmax=False),
        neighborhood((1, 5, 9, 37, 61), 5, dilation=2, border="mask"),
        outlook((1, 3, 48, 17, 13), 5),
        qna((1, 3, 20, 37, 61), 4, queries=3, stride=2, sum_queries=False),
        deformable((3, 77, 1, 200, 5), ((31, 17),), fused=True, padding="zeros"),
        deformable((1, 77, 8, 32, 1), _MAPS, fused=False, padding="zeros"),
        elsa((2, 1, 160, 2, 3), 7, lam=0),
        neighborhood((2, 1, 160, 2, 3), 7),
        qna((2, 1, 160, 2, 3), 3),
        elsa((1, 2, 32, 33, 29), 13, lam=0),
    ]


def tiny_problems() -> list[Problem]:
    """The least that reaches every function, for Triton's interpreter."""
    maps = ((2, 3),)
    return [
        elsa((1, 1, 3, 3, 2), 3, dims=5, lam=0),
        elsa((1, 1, 3, 3, 2), 3, mul=True, softmax=False),
        qna((1, 2, 2, 3, 2), 3, stride=2),
        neighborhood((1, 1, 3, 3, 2), 3, border="mask"),
        outlook((1, 1, 3, 3, 2), 3, stride=2),
        deformable((1, 2, 1, 3, 2), maps, fused=True, padding="border"),
        deformable((1, 2, 1, 3, 2), maps, fused=False, padding="zeros"),
    ]


def big_problems(elements: int, heads: int, width: int) -> list[Problem]:
    """Problems whose largest tensor has more than ``elements`` numbers, one for each function.

    Args:
        elements: number of elements to exceed.
        heads: heads of each problem.
        width: width of the maps in pixels.
    """

    def size(per_head: int, numbers: int) -> tuple[int, ...]:
        """A map with so many rows that a tensor of ``numbers`` numbers a pixel is big enough."""
        return (1, heads, per_head, max(12, elements // (numbers * width) + 1), width)

    logits = heads * 9
    queries = max(12, elements // 64 + 1)  # two maps of 16 points, two numbers each
    maps = ((40, 50), (20, 25))
    return [
        elsa(size(16, 16 * heads), 3, dims=40, lam=0),
        elsa(size(16, logits), 3, lam=0),
        qna(size(16, 16 * heads), 3),
        neighborhood(size(8, logits), 3),
        outlook(size(8, 9 * logits), 3),
        deformable((1, queries, 1, 8, 16), maps, fused=True, padding="zeros"),
        deformable((1, queries, 1, 8, 16), maps, fused=False, padding="zeros"),
    ]

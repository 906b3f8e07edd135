"""Shapes for checking and timing an op, and the sets of shapes that all ops share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

# Takes a shape and makes a leaf tensor on the device and in the dtype of a run. Four dimensions are
# a map ``(B, C, H, W)``, which is channels-last in memory.
Make = Callable[..., Tensor]

# Images for ``stages``: batch, height and width in pixels.
_IMAGES = ((4, 224, 224), (1, 800, 1280))


@dataclass(frozen=True)
class Case:
    """One shape of one op.

    Args:
        op: name of the op in ``OPS``.
        name: the model or set of shapes that this shape comes from.
        batch: number of images.
        channels: channels of the values.
        heads: number of heads. It must divide ``channels``.
        height: height of the map in pixels.
        width: width of the map in pixels.
        kernel_size: odd width of the window.
        stride: distance between windows in pixels.
        variant: a use of the op that its analysis knows; empty for the usual one.
    """

    op: str
    name: str
    batch: int
    channels: int
    heads: int
    height: int
    width: int
    kernel_size: int
    stride: int = 1
    variant: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage of a published model that runs an op.

    Args:
        model: name of the model.
        number: number of the stage, from 1. A side of its map has ``2 ** (number + 1)`` times fewer
            pixels than the image.
        channels: channels of the values.
        heads: heads of the op.
        kernel_size: odd width of the window.
        stride: distance between windows in pixels.
    """

    model: str
    number: int
    channels: int
    heads: int
    kernel_size: int
    stride: int = 1


def stages(op: str, published: Iterable[Stage]) -> list[Case]:
    """Return the stages at 224x224 and 800x1280. A shape that several models share comes once."""
    published = list(published)
    found: dict[tuple, list[str]] = {}
    for batch, *image in _IMAGES:
        for s in published:
            size = (-(-pixels // 2 ** (s.number + 1)) for pixels in image)
            place = f"stage {s.number}{' down' if s.stride > 1 else ''} at {image[0]}x{image[1]}"
            shape = (batch, s.channels, s.heads, *size, s.kernel_size, s.stride)
            found.setdefault((place, *shape), []).append(s.model)
    return [
        Case(op, f"{' = '.join(models)}, {place}", *shape)
        for (place, *shape), models in found.items()
    ]


def figure2(op: str, heads: int) -> list[Case]:
    """Maps of 256x256x64 and growing windows, as in figure 2 of the QnA paper."""
    return [
        Case(op, f"256x256x64, {k}x{k}", 1, 64, heads, 256, 256, k) for k in (3, 5, 7, 9, 11, 13)
    ]


def resolution(op: str, heads: int) -> list[Case]:
    """Windows of 7x7 and growing maps of 64 channels."""
    return [
        Case(op, f"{side}x{side}x64, 7x7", 1, 64, heads, side, side, 7)
        for side in (32, 64, 128, 256, 512)
    ]

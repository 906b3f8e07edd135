"""Mixing of tokens between the images of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmlocal.layers.checks import check_tensor, is_int, is_sequence


def check_box(height: int, width: int, **arguments: Any) -> None:
    """Check that each argument is a rectangle of a map.

    Args:
        height: height of the map, in tokens.
        width: width of the map, in tokens.
        **arguments: rectangles, by name.

    Raises:
        TypeError: a rectangle is not a sequence of four integers.
        ValueError: a rectangle leaves the map, or ends before it begins.
    """
    for name, box in arguments.items():
        if not is_sequence(box) or len(box) != 4 or not all(is_int(side) for side in box):
            raise TypeError(f"{name} must be four integers (top, left, bottom, right), got {box!r}")
        top, left, bottom, right = box
        if not (0 <= top <= bottom <= height and 0 <= left <= right <= width):
            raise ValueError(
                f"{name} must be (top, left, bottom, right) inside the map of {height}x{width} "
                f"tokens, got {box}"
            )


def exchange_box(x: Tensor, box: Sequence[int]) -> Tensor:
    """Exchange a rectangle of each map with the map of the reversed batch.

    Image ``b`` gets the rectangle of image ``B - 1 - b``. A second exchange of the same rectangle
    undoes the first.

    Args:
        x: ``(B, H, W, C)``, any dtype.
        box: rows and columns ``(top, left, bottom, right)`` of the rectangle, in tokens. The last
            row and column are not part of it.

    Returns:
        A new tensor of the same shape.

    Raises:
        TypeError: ``x`` is not a tensor, or ``box`` is not a sequence of four integers.
        ValueError: ``x`` is not 4-D, or ``box`` leaves the map.

    Source:
        MixToken: All Tokens Matter, Jiang et al. 2021, section 3.3,
        https://arxiv.org/abs/2104.10858.
    """
    check_tensor(x)
    if x.dim() != 4:
        raise ValueError(f"x must be a map (B, H, W, C), got {tuple(x.shape)}")
    check_box(x.shape[1], x.shape[2], box=box)
    top, left, bottom, right = box
    mixed = x.clone()
    mixed[:, top:bottom, left:right] = x[:, top:bottom, left:right].flip(0)
    return mixed

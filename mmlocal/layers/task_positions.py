"""Positions of the pixels of several tasks' maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

POSITIONS = ("canvas", "task")


def sine_positions(
    height: int,
    width: int,
    channels: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    normalize: bool = True,
) -> Tensor:
    """Encode rows and columns by sines and cosines.

    With ``d = channels / 2``, the row ``y`` from 1 to ``height`` has the channels ``i < d``::

        a = 2 * pi * y / (height + 1e-6) / 10000 ** (2 * (i // 2) / d)
        sin(a) for even i, cos(a) for odd i

    Without ``normalize``, ``a`` is ``y / 10000 ** (2 * (i // 2) / d)``, whatever the height. The
    next ``d`` channels encode the column in the same way.

    Args:
        height: rows.
        width: columns.
        channels: a multiple of 4.
        device: device of the result.
        dtype: dtype of the result, at least float32.
        normalize: whether the last row and column of any map have the same angles.

    Returns:
        ``(height, width, channels)``.

    Source:
        DETR, Carion et al. 2020. MMDetection has the same formula in
        ``SinePositionalEncoding(channels / 2, normalize=normalize)``.
    """
    half = channels // 2
    channel = torch.arange(half, device=device)
    periods = 10000 ** ((channel - channel % 2).to(dtype) / half)

    def encode(size: int) -> Tensor:
        steps = torch.arange(1, size + 1, device=device, dtype=dtype)
        if normalize:
            steps = steps / (size + 1e-6) * (2 * math.pi)
        angles = steps[:, None] / periods
        return torch.stack((angles[:, ::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    cols = encode(width)[None].expand(height, -1, -1)
    return torch.cat((rows, cols), dim=2)


def task_positions(x: Tensor, channels: int, positions: str, normalize: bool = True) -> Tensor:
    """Encode the positions of the pixels of all tasks.

    Args:
        x: ``(B, T, H, W, C)``.
        channels: channels of the result, a multiple of 4.
        positions: ``"canvas"`` for positions in the map of all tasks below each other, of height
            ``T * H``. ``"task"`` for positions in the map of each task.
        normalize: as in :func:`sine_positions`.

    Returns:
        ``(B, T, H, W, channels)``, dtype of ``x``.
    """
    batch, tasks, height, width, _ = x.shape
    rows = tasks * height if positions == "canvas" else height
    wide = torch.promote_types(x.dtype, torch.float32)
    encoded = sine_positions(rows, width, channels, x.device, wide, normalize).to(x.dtype)
    return encoded.view(-1, height, width, channels).expand(batch, tasks, -1, -1, -1)


def cell_centres(x: Tensor) -> Tensor:
    """Compute the centres of the pixels of all tasks, as fractions of the width and height.

    Args:
        x: ``(B, T, H, W, C)``.

    Returns:
        x and y, ``(1, T * H * W, 1, 2)``, the dtype of ``x``, but at least float32. All tasks have
        the same centres.
    """
    _, tasks, height, width, _ = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = (torch.arange(height, device=x.device, dtype=wide) + 0.5) / height
    cols = (torch.arange(width, device=x.device, dtype=wide) + 0.5) / width
    centres = torch.stack((cols.expand(height, -1), rows[:, None].expand(-1, width)), dim=2)
    return centres.expand(tasks, -1, -1, -1).reshape(1, -1, 1, 2)

"""Plain PyTorch, one tap at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def _taps(x: Tensor, kernel_size: int, sign: int) -> Iterator[Tensor]:
    """Yield ``x`` shifted by the offset of each tap, or shifted back."""
    half = kernel_size // 2
    padded = F.pad(x, (half, half, half, half))
    height, width = x.shape[2:]
    for tap in range(kernel_size**2):
        row, column = sign * (tap // kernel_size - half), sign * (tap % kernel_size - half)
        yield padded[..., half + row :, half + column :][..., :height, :width]


def forward(value: Tensor, attn: Tensor, kernel_size: int) -> Tensor:
    weights = attn.softmax(1)
    out = torch.zeros_like(value)
    for tap, moved in enumerate(_taps(value, kernel_size, 1)):
        out += weights[:, tap, None] * moved
    return out


def backward(
    grad: Tensor, value: Tensor, attn: Tensor, kernel_size: int, needs_grad: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    weights = attn.softmax(1)
    of_weights = [(grad * moved).sum(1) for moved in _taps(value, kernel_size, 1)]
    of_weights = torch.stack(of_weights, 1)
    of_attn = weights * (of_weights - (weights * of_weights).sum(1, keepdim=True))
    of_value = torch.zeros_like(value)
    for tap in range(kernel_size**2):
        weighted = weights[:, tap, None] * grad
        of_value += list(_taps(weighted, kernel_size, -1))[tap]
    return of_value, of_attn

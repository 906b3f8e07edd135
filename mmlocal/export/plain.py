"""Models and programs made of operators that every runtime has."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from mmlocal.ops.operator import PLAIN_FORMS


def plain_forms() -> dict[OpOverload, Callable[..., Tensor]]:
    """Return the plain form of each operator of mmlocal, to take an exported program apart.

    Example::

        program = torch.export.export(model, (image,))  # one node for each op
        plain = program.run_decompositions(plain_forms())

    ``plain`` needs no mmlocal, so it can be compiled ahead of time for C++. A plain form holds no
    windows, and takes several times as long as the C++ kernels.

    Returns:
        Functions by operator, such as ``torch.ops.mmlocal.elsa_attention.default``.
    """
    return dict(PLAIN_FORMS)


def prepare(model: nn.Module) -> nn.Module:
    """Copy a model, without gradients and in evaluation mode, and make its layers exportable.

    ``nn.AdaptiveAvgPool2d`` with several means, as in the heads of MMSegmentation, becomes a
    product of matrices. PyTorch exports this layer for one size of maps only, because it takes
    another way if the sides are multiples of the number of means.

    Args:
        model: the model. It does not change.

    Returns:
        A model with the same outputs.
    """
    model = deepcopy(model).eval().requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d) and (size := _several(module)):
            if not name:
                return _MeansOfBlocks(*size)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _MeansOfBlocks(*size))
    return model


def _several(module: nn.AdaptiveAvgPool2d) -> tuple[int, int] | None:
    """Rows and columns of a pooling, if both are numbers and one is above 1."""
    size: Any = module.output_size
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows is None or columns is None or rows == columns == 1:
        return None
    return rows, columns


class _MeansOfBlocks(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as a product with two matrices, for maps of any size.

    Args:
        rows: rows of the output.
        columns: columns of the output.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.size = (rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., H, W)`` to ``(..., rows, columns)``."""
        rows, columns = (
            _shares(side, count, x) for side, count in zip(x.shape[-2:], self.size, strict=True)
        )
        return rows @ x @ columns.mT


def _shares(side: int, count: int, like: Tensor) -> Tensor:
    """Return the share of each pixel of a side in each of some means, ``(count, side)``."""
    pixel = torch.arange(side, device=like.device)
    number = torch.arange(count, device=like.device)[:, None]
    start = number * side // count
    stop = ((number + 1) * side + count - 1) // count
    inside = (pixel >= start) & (pixel < stop)
    return inside.to(like.dtype) / (stop - start)

"""Learned position embeddings, which are resized to the map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import as_pair


def pretrain_map_size(pretrain_img_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Compute the size of the map of an image.

    Args:
        pretrain_img_size: size of the image in pixels, one number or height and width.
        patch_size: width of a patch in pixels.

    Returns:
        Height and width in whole patches.

    Raises:
        ValueError: the image is smaller than a patch.
        TypeError: ``pretrain_img_size`` is neither an integer nor a pair of integers.
    """
    height, width = as_pair("pretrain_img_size", pretrain_img_size)
    if min(height, width) < patch_size:
        raise ValueError(
            f"pretrain_img_size must be at least patch_size={patch_size}, got {pretrain_img_size}"
        )
    return height // patch_size, width // patch_size


def position_embedding(dims: int, map_size: tuple[int, int]) -> nn.Parameter:
    """Make a parameter ``(1, dims, *map_size)``, drawn from a truncated normal of 0.02."""
    embed = nn.Parameter(torch.empty(1, dims, *map_size))
    nn.init.trunc_normal_(embed, std=0.02)
    return embed


def add_position(x: Tensor, embed: Tensor) -> Tensor:
    """Resize a position embedding to a map by bicubic interpolation, and add it.

    Args:
        x: ``(B, H, W, C)``.
        embed: ``(1, C, H', W')``.

    Returns:
        ``(B, H, W, C)``.
    """
    # An ONNX graph has one branch for all sizes. To resize to the same size changes nothing.
    if torch.onnx.is_in_onnx_export() or embed.shape[2:] != x.shape[1:3]:
        embed = F.interpolate(embed, x.shape[1:3], mode="bicubic", align_corners=False)
    return x + embed.permute(0, 2, 3, 1)

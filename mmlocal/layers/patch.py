"""Layers that turn an image into patches, and patches into larger patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, as_side, check_flag, check_int
from mmlocal.layers.image_checks import check_image
from mmlocal.layers.linear import Linear


def _up(side: int, step: int) -> int:
    """Round up to a multiple of ``step``."""
    return (side + step - 1) // step * step


class PatchEmbed(Unscripted, nn.Module):
    """Embed patches that do not overlap by a convolution, then normalise them.

    If a side of the image is not a multiple of the patch, the layer pads zeros at the bottom or
    right.

    Args:
        in_channels: channels of the image.
        embed_dims: channels out.
        patch_size: width of a patch in pixels; also as a pair of equal numbers.
        norm: whether a LayerNorm follows the convolution.
        bias: whether the convolution has a bias.

    Raises:
        ValueError: a number is below 1, or the patch is not a square.
        TypeError: an argument has another type.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int | tuple[int, int] = 4,
        norm: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_int(in_channels=in_channels, embed_dims=embed_dims)
        check_flag(norm=norm, bias=bias)
        patch_size = as_side("patch_size", patch_size)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, stride=patch_size, bias=bias)
        self.norm = nn.LayerNorm(embed_dims) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, ceil(H / p), ceil(W / p), embed_dims)``.

        Raises:
            ValueError: ``x`` is not 4-D, has other channels or is smaller than one patch.
            TypeError: ``x`` is not floating point.
        """
        check_image(x, self.in_channels, self.patch_size)
        # Sums and products rather than remainders keep the symbols of an exporter short.
        below, right = (_up(side, self.patch_size) - side for side in x.shape[2:])
        x = F.pad(x, (0, right, 0, below))
        # The convolution keeps the layout of the image, and so would all sums that follow.
        return self.norm(self.proj(x).permute(0, 2, 3, 1).contiguous())


class PatchMerging(nn.Module):
    """Join 2x2 neighbours, normalise, and project to fewer channels.

    Neighbours are concatenated in the order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column). The
    original Swin Transformer has this order; mmcv's ``PatchMerging`` has another. If a side is odd,
    the layer first adds one row or column of zeros at the bottom or right.

    Args:
        in_dims: channels in.
        out_dims: channels out.

    Raises:
        ValueError: a number is below 1.
        TypeError: an argument is not an integer.
    """

    def __init__(self, in_dims: int, out_dims: int) -> None:
        super().__init__()
        check_int(in_dims=in_dims, out_dims=out_dims)
        self.norm = nn.LayerNorm(4 * in_dims)
        self.reduction = Linear(4 * in_dims, out_dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, in_dims)`` to ``(B, ceil(H / 2), ceil(W / 2), out_dims)``."""
        below, right = (_up(side, 2) - side for side in x.shape[1:3])
        x = F.pad(x, (0, 0, 0, right, 0, below))
        rows, next_rows = x[:, 0::2], x[:, 1::2]
        x = torch.cat(
            (rows[:, :, 0::2], next_rows[:, :, 0::2], rows[:, :, 1::2], next_rows[:, :, 1::2]),
            dim=-1,
        )
        return self.reduction(self.norm(x))

"""The convolutional stem of VOLO."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, check_int
from mmlocal.layers.image_checks import check_image


class ConvStem(Unscripted, nn.Module):
    """Embed patches of 8x8 pixels by four convolutions.

    The first three are 7x7 of stride 2, 3x3 and 3x3, each with batch norm and ReLU. The last one
    is 4x4 of stride 4. If a side of the image is not a multiple of 8, the layer pads zeros at the
    bottom or right.

    Args:
        in_channels: channels of the image.
        embed_dims: channels out.
        stem_dims: channels in between.

    Raises:
        ValueError: a number is below 1.
        TypeError: an argument is not an integer.

    Source:
        VOLO, Yuan et al. 2021, section 3.3, https://arxiv.org/abs/2106.13112; the sizes are from
        the official code sail-sg/volo (Apache-2.0).
    """

    patch_size = 8

    def __init__(self, in_channels: int, embed_dims: int, stem_dims: int = 64) -> None:
        super().__init__()
        check_int(in_channels=in_channels, embed_dims=embed_dims, stem_dims=stem_dims)
        self.in_channels = in_channels
        self.conv = nn.Sequential(
            *_conv_norm_act(in_channels, stem_dims, 7, stride=2),
            *_conv_norm_act(stem_dims, stem_dims, 3),
            *_conv_norm_act(stem_dims, stem_dims, 3),
        )
        self.proj = nn.Conv2d(stem_dims, embed_dims, self.patch_size // 2, self.patch_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, ceil(H / 8), ceil(W / 8), embed_dims)``.

        Raises:
            ValueError: ``x`` is not 4-D, has other channels or is smaller than one patch.
            TypeError: ``x`` is not floating point.
        """
        check_image(x, self.in_channels, self.patch_size)
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size))
        # Convolutions of channels-last maps are faster, and their output needs no copy below.
        x = x.contiguous(memory_format=torch.channels_last)
        # If the output has another layout, every LayerNorm up to the next stage would copy it.
        return self.proj(self.conv(x)).permute(0, 2, 3, 1).contiguous()


def _conv_norm_act(
    in_dims: int, out_dims: int, kernel_size: int, stride: int = 1
) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_dims, out_dims, kernel_size, stride, kernel_size // 2, bias=False)
    return conv, nn.BatchNorm2d(out_dims), nn.ReLU()

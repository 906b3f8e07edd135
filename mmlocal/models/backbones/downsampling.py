"""Layers between the resolutions of QnA-ViT: its stem, and its ways to halve a map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers import LayerNorm, check_image
from mmlocal.layers.checks import check_int
from mmlocal.layers.gelu import GELU
from mmlocal.layers.linear import PointwiseConv2d


def pad_same(x: Tensor, kernel_size: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad ``(B, C, H, W)`` as JAX's ``SAME`` does: an odd pixel goes to the bottom or right.

    Args:
        x: ``(B, C, H, W)``.
        kernel_size: width of the window that slides over the result.
        stride: step of the window.
        value: number to pad with.

    Returns:
        The padded map, on which the window has ``ceil(H / stride)`` by ``ceil(W / stride)`` places.
    """
    pad = []
    for size in (x.shape[3], x.shape[2]):
        places = (size + stride - 1) // stride
        total = max((places - 1) * stride + kernel_size - size, 0)
        pad += [total // 2, total - total // 2]
    return F.pad(x, pad, value=value)


class ResNetStem(nn.Module):
    """Convolution 7x7 of stride 2, batch norm, GELU, max-pooling 3x3 of stride 2.

    Args:
        in_channels: channels of the image.
        embed_dims: channels out.
    """

    patch_size = 4

    def __init__(self, in_channels: int, embed_dims: int) -> None:
        super().__init__()
        check_int(in_channels=in_channels, embed_dims=embed_dims)
        self.in_channels = in_channels
        self.conv = nn.Conv2d(in_channels, embed_dims, 7, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(embed_dims)
        self.act = GELU("tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, ceil(H / 4), ceil(W / 4), embed_dims)``.

        Raises:
            ValueError: ``x`` is not 4-D, has other channels or is smaller than 4x4 pixels.
            TypeError: ``x`` is not floating point.
        """
        check_image(x, self.in_channels, 4)
        x = self.act(self.norm(self.conv(pad_same(x, 7, 2))))
        x = F.max_pool2d(pad_same(x, 3, 2, float("-inf")), 3, stride=2)
        return x.permute(0, 2, 3, 1).contiguous()


class DownsampleSkip(nn.Module):
    """Skip connection of a downsampling block: a strided 1x1 convolution.

    Args:
        in_dims: channels in.
        out_dims: channels out.
        pool_size: odd width of an average pooling of stride 2 before the convolution; ``None`` for
            a convolution of stride 2 without pooling.
    """

    def __init__(self, in_dims: int, out_dims: int, pool_size: int | None = None) -> None:
        super().__init__()
        self.pool_size = pool_size
        stride = 1 if pool_size else 2
        self.conv = PointwiseConv2d(in_dims, out_dims, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, in_dims)`` to ``(B, ceil(H / 2), ceil(W / 2), out_dims)``."""
        x = x.permute(0, 3, 1, 2)
        if self.pool_size:
            # The mean includes the zeros of the padding, as in the official code.
            x = F.avg_pool2d(pad_same(x, self.pool_size, 2), self.pool_size, stride=2)
        return self.conv(x).permute(0, 2, 3, 1)


class ConvDownsample(nn.Module):
    """Halve a map by a 2x2 convolution of stride 2, without a bias.

    Args:
        in_dims: channels in.
        out_dims: channels out.
    """

    def __init__(self, in_dims: int, out_dims: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dims, out_dims, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, in_dims)`` to ``(B, ceil(H / 2), ceil(W / 2), out_dims)``."""
        return self.conv(pad_same(x.permute(0, 3, 1, 2), 2, 2)).permute(0, 2, 3, 1)


class NesTDownsample(nn.Module):
    """Halve a map by a 3x3 convolution, LayerNorm, and max-pooling 3x3 of stride 2.

    Args:
        in_dims: channels in.
        out_dims: channels out.

    Source:
        Nested Hierarchical Transformer, Zhang et al. 2022, https://arxiv.org/abs/2105.12723.
    """

    def __init__(self, in_dims: int, out_dims: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dims, out_dims, 3, padding=1)
        self.norm = LayerNorm(out_dims, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, in_dims)`` to ``(B, ceil(H / 2), ceil(W / 2), out_dims)``."""
        x = self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = F.max_pool2d(pad_same(x, 3, 2, float("-inf")), 3, stride=2)
        return x.permute(0, 2, 3, 1)

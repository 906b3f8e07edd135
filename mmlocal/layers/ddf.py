"""The decoupled dynamic filter: one filter per pixel times one filter per channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, as_side, check_int, check_map, check_number
from mmlocal.layers.filter_norm import filter_norm
from mmlocal.layers.mixers import register_mixer
from mmlocal.ops import elsa_attention


@register_mixer
class DDF(Unscripted, nn.Module):
    """Dynamic filters that are products of a spatial and a channel filter, both normalised.

    For channel ``c`` of an image and the taps ``t`` of the window around pixel ``p``::

        out[c, p] = sum_t spatial[t, p] * channel[c, t] * x[c, p + offset(t)]

    A ``1 x 1`` convolution predicts the spatial filter of a pixel from the pixel. Two linear layers
    with ReLU between them predict the channel filters from the mean of the image. The taps of each
    filter are shifted and scaled to mean 0 and standard deviation 1. After that, spatial filters
    are multiplied by ``sqrt(2) / kernel_size``, and channel filters by a learned number per channel
    and tap.

    Args:
        embed_dims: channels in and out.
        num_heads: not used, because all channels share the spatial filter of a pixel. All mixers
            take it.
        kernel_size: odd width of the window, in taps, at least 3; also as a pair of equal numbers.
        dilation: distance between taps, in pixels.
        se_ratio: hidden channels of the channel filters' layers, divided by ``embed_dims``; there
            is at least one.
        backend: name of a backend of :func:`mmlocal.ops.elsa_attention`; ``None`` for the fastest.

    Raises:
        ValueError: ``kernel_size`` is even or 1, a count is below 1, or ``se_ratio`` is not
            positive and finite.
        TypeError: an argument has another type.

    Note:
        This is the bare operator, without projections of its input and output, as in the paper.
        :class:`~mmlocal.layers.ProjectedMixer` adds them. Pixels outside the map are 0. The layer
        never stores the filters of channels and pixels: its largest maps are its input and the
        spatial filters.

        The paper also combines the filters by addition. Its published models of both kinds are
        equally good within 0.3 points, so this layer has the product only. In the paper, both kinds
        of filters have learned scales and offsets. In the official code, only channel filters have
        them, and only scales. This layer follows the code.

    Source:
        Decoupled Dynamic Filter Networks, Zhou et al. 2021, section 3.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 7,
        dilation: int = 1,
        se_ratio: float = 0.2,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads, dilation=dilation)
        check_number(se_ratio=se_ratio)
        if se_ratio <= 0:
            raise ValueError(f"se_ratio must be positive, got {se_ratio}")
        self.embed_dims = embed_dims
        self.kernel_size = kernel_size = as_side("kernel_size", kernel_size, odd=True)
        if kernel_size == 1:
            raise ValueError(
                "kernel_size must be at least 3, because one tap cannot be normalised, got 1"
            )
        self.dilation = dilation
        self.backend = backend
        self.spatial_scale = math.sqrt(2) / kernel_size
        hidden_dims = max(1, int(embed_dims * se_ratio))
        self.spatial = nn.Conv2d(embed_dims, kernel_size**2, 1)
        self.channel = nn.Sequential(
            nn.Linear(embed_dims, hidden_dims),
            nn.ReLU(),
            nn.Linear(hidden_dims, embed_dims * kernel_size**2),
        )
        self.channel_scale = nn.Parameter(torch.randn(embed_dims, kernel_size**2))
        self.channel_scale.data *= self.spatial_scale

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        check_map(x, self.embed_dims)
        if x.shape[0] == 0:
            return x  # the op takes no map without channels
        size = self.kernel_size
        channel = self.channel(x.mean(dim=(1, 2))).unflatten(1, (self.embed_dims, size**2))
        channel = filter_norm(channel, dim=2) * self.channel_scale
        x = x.permute(0, 3, 1, 2)
        spatial = filter_norm(self.spatial(x), dim=1) * self.spatial_scale
        # The op has one table of factors for all images. So the images become heads of one image.
        out = elsa_attention(
            x.flatten(0, 1)[None],
            spatial.flatten(0, 1)[None],
            channel.flatten(0, 1).unflatten(1, (size, size)),
            kernel_size=size,
            dilation=self.dilation,
            softmax=False,
            backend=self.backend,
        )
        return out.view(x.shape).permute(0, 2, 3, 1)

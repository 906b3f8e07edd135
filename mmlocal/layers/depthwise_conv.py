"""The static depth-wise convolution."""

from __future__ import annotations

from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, as_side, check_flag, check_int, check_map
from mmlocal.layers.mixers import register_mixer


@register_mixer
class DepthwiseConv(Unscripted, nn.Module):
    """``out[c, p] = bias[c] + sum_t weight[c, t] * x[c, p + offset(t)]``, zero outside the map.

    Args:
        embed_dims: channels in and out.
        num_heads: not used, because each channel has its own kernel. All mixers take it.
        kernel_size: odd width of the kernel; also as a pair of equal numbers.
        bias: whether to add a learned number per channel.

    Raises:
        ValueError: ``kernel_size`` is even, or a count is below 1.
        TypeError: an argument has another type.

    Note:
        The layer has no projections. :class:`~mmlocal.layers.DWNetBlock` has them around it.

    Source:
        On the Connection between Local Attention and Dynamic Depth-wise Convolution, Han et al.
        2022, https://arxiv.org/abs/2106.04263.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int = 1,
        kernel_size: int | tuple[int, int] = 7,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads)
        check_flag(bias=bias)
        kernel_size = as_side("kernel_size", kernel_size, odd=True)
        self.embed_dims = embed_dims
        self.conv = nn.Conv2d(
            embed_dims,
            embed_dims,
            kernel_size,
            padding=kernel_size // 2,
            groups=embed_dims,
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        check_map(x, self.embed_dims)
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

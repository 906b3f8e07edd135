"""Involution: each pixel predicts the filters of its own window."""

from __future__ import annotations

from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, as_side, check_int, check_map
from mmlocal.layers.mixers import register_mixer
from mmlocal.ops import elsa_attention


@register_mixer
class Involution(Unscripted, nn.Module):
    """Filters that differ between pixels, and that all channels of a group share.

    Two ``1 x 1`` convolutions, with BatchNorm and ReLU between them, map each pixel to the taps of
    its filters. For channel ``c`` of group ``g`` and the taps ``t`` of the window around ``p``::

        out[c, p] = sum_t filters(x[:, p])[g, t] * x[c, p + offset(t)]

    Args:
        embed_dims: channels in and out.
        num_heads: groups of channels; must divide ``embed_dims``.
        kernel_size: odd width of the window, in taps; also as a pair of equal numbers.
        dilation: distance between taps, in pixels.
        reduction: divides ``embed_dims`` to give the channels between the two convolutions, at
            least one.
        group_channels: channels of a group; must divide ``embed_dims``. It replaces ``num_heads``.
            The paper has 16. ``None`` for ``embed_dims / num_heads``.
        backend: name of a backend of :func:`mmlocal.ops.elsa_attention`; ``None`` for the fastest.

    Raises:
        ValueError: ``kernel_size`` is even, a count is below 1, or ``num_heads`` or
            ``group_channels`` does not divide ``embed_dims``.
        TypeError: an argument has another type.

    Note:
        This is the bare operator, without projections of its input and output, as in the paper.
        :class:`~mmlocal.layers.ProjectedMixer` adds them. Pixels outside the map are 0. No window
        is ever stored: the largest map of the layer holds the taps.

        BatchNorm in training needs more than one pixel: a batch of one image of one pixel fails.

    Source:
        Involution: Inverting the Inherence of Convolution for Visual Recognition, Li et al. 2021,
        section 3.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 7,
        dilation: int = 1,
        reduction: int = 4,
        group_channels: int | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_int(
            embed_dims=embed_dims, num_heads=num_heads, dilation=dilation, reduction=reduction
        )
        if group_channels is not None:
            check_int(group_channels=group_channels)
            if embed_dims % group_channels:
                raise ValueError(
                    f"group_channels must divide embed_dims={embed_dims}, got {group_channels}"
                )
            num_heads = embed_dims // group_channels
        elif embed_dims % num_heads:
            raise ValueError(
                f"num_heads must divide embed_dims={embed_dims}, got num_heads={num_heads}"
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.kernel_size = as_side("kernel_size", kernel_size, odd=True)
        self.dilation = dilation
        self.backend = backend
        hidden_dims = max(1, embed_dims // reduction)
        self.filters = nn.Sequential(
            nn.Conv2d(embed_dims, hidden_dims, 1, bias=False),
            nn.BatchNorm2d(hidden_dims),
            nn.ReLU(),
            nn.Conv2d(hidden_dims, num_heads * self.kernel_size**2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape, or BatchNorm has a single value per channel.
        """
        check_map(x, self.embed_dims)
        x = x.permute(0, 3, 1, 2)
        out = elsa_attention(
            x,
            self.filters(x),
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            softmax=False,
            backend=self.backend,
        )
        return out.permute(0, 2, 3, 1)

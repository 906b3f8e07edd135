"""Involution: each pixel predicts the filters of its own window."""

from __future__ import annotations

from mmlocal.layers.checks import check_int
from mmlocal.layers.inhomogeneous_depthwise_conv import InhomogeneousDepthwiseConv
from mmlocal.layers.mixers import register_mixer


@register_mixer
class Involution(InhomogeneousDepthwiseConv):
    """Filters that differ between pixels, and that all channels of a group share.

    Two ``1 x 1`` convolutions, with BatchNorm and ReLU between them, map each pixel to the taps of
    its filters. For channel ``c`` of group ``g`` and the taps ``t`` of the window around ``p``::

        out[c, p] = sum_t filters(x[:, p])[g, t] * x[c, p + offset(t)]

    Args:
        embed_dims: channels in and out.
        num_heads: groups of channels; must divide ``embed_dims``.
        kernel_size: odd width of the window, in taps; also as a pair of equal numbers.
        dilation: distance between taps, in pixels.
        reduction: there are ``embed_dims // reduction`` channels between the two convolutions.
        group_channels: channels of a group; must divide ``embed_dims``. It replaces ``num_heads``.
            The paper has 16. ``None`` for ``embed_dims / num_heads``.
        backend: name of a backend of :func:`mmlocal.ops.elsa_attention`; ``None`` for the fastest.

    Raises:
        ValueError: ``kernel_size`` is even, a count is below 1, ``num_heads`` or ``group_channels``
            does not divide ``embed_dims``, or ``reduction`` is larger than ``embed_dims``.
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
        if group_channels is not None:
            check_int(embed_dims=embed_dims, group_channels=group_channels)
            if embed_dims % group_channels:
                raise ValueError(
                    f"group_channels must divide embed_dims={embed_dims}, got {group_channels}"
                )
            num_heads = embed_dims // group_channels
        super().__init__(
            embed_dims,
            num_heads,
            kernel_size,
            dilation,
            reduction,
            reduce_bias=False,
            backend=backend,
        )

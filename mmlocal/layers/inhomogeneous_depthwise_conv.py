"""The inhomogeneous dynamic depth-wise convolution."""

from __future__ import annotations

from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_heads
from mmlocal.layers.checks import Unscripted, as_side, check_flag, check_int, check_map
from mmlocal.layers.kernel_predictor import KernelPredictor
from mmlocal.layers.mixers import register_mixer
from mmlocal.ops import elsa_attention


@register_mixer
class InhomogeneousDepthwiseConv(Unscripted, nn.Module):
    """A depth-wise convolution with kernels that the layer predicts for each position::

        out[c, p]  = sum_t kernels[g(c), t, p] * x[c, p + offset(t)],  g(c) = c * num_heads // C
        kernels[p] = expand(relu(bn(reduce(x[p]))))

    A kernel is neither normalised nor activated, and the output has no bias. The map is zero
    outside. :class:`~mmlocal.layers.Involution` is the same operator.

    Args:
        embed_dims: channels in and out.
        num_heads: groups of channels that share a kernel; must divide ``embed_dims``. DWNet has 32
            in every stage. The official setting ``INHOMO_HEADS`` counts the channels of a group.
        kernel_size: odd width of the kernels; also as a pair of equal numbers.
        dilation: distance between taps, in pixels.
        reduction: the predictor has ``embed_dims // reduction`` channels in between.
        reduce_bias: whether the first layer of the predictor has a bias. Batch normalization
            cancels it in training.
        backend: name of a backend of :func:`mmlocal.ops.elsa_attention`; ``None`` for the fastest.

    Raises:
        ValueError: ``kernel_size`` is even, a count is below 1, ``num_heads`` does not divide
            ``embed_dims``, or ``reduction`` is larger than ``embed_dims``.
        TypeError: an argument has another type.

    Source:
        On the Connection between Local Attention and Dynamic Depth-wise Convolution, Han et al.
        2022, https://arxiv.org/abs/2106.04263; official code Atten4Vis/DemystifyLocalViT (MIT).
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 7,
        dilation: int = 1,
        reduction: int = 4,
        reduce_bias: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads, dilation=dilation)
        check_flag(reduce_bias=reduce_bias)
        kernel_size = as_side("kernel_size", kernel_size, odd=True)
        check_heads(embed_dims, num_heads)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.backend = backend
        self.predictor = KernelPredictor(
            embed_dims, num_heads * kernel_size**2, reduction, reduce_bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape, or it is one image with a map of 1x1 and the
                predictor's batch norm is in training mode.
        """
        check_map(x, self.embed_dims)
        value = x.permute(0, 3, 1, 2)
        out = elsa_attention(
            value,
            self.predictor(value),
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            softmax=False,
            backend=self.backend,
        )
        return out.permute(0, 2, 3, 1)

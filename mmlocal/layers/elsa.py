"""The ELSA layer: Hadamard attention and ghost head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmlocal.layers.checks import (
    Unscripted,
    as_side,
    check_flag,
    check_int,
    check_map,
    check_number,
    check_rate,
)
from mmlocal.layers.grouped_conv import GroupedConv2d
from mmlocal.layers.linear import Linear, PointwiseConv2d
from mmlocal.layers.mixers import register_mixer
from mmlocal.layers.projected_attention import ProjectedAttention


@register_mixer
class ELSA(Unscripted, nn.Module):
    """Local self-attention whose maps come from the Hadamard product of queries and keys.

    The layer multiplies ``q * k`` at each pixel, over all channels and before it splits heads. A
    grouped ``k x k`` convolution, GELU and a ``1 x 1`` convolution map the product to one logit per
    head and neighbour. The channels ``[n * v_dims / num_heads, (n + 1) * v_dims / num_heads)`` of
    the values use the attention map of head ``n``. The ghost head turns that map into one map per
    channel.

    Args:
        embed_dims: channels in and out.
        num_heads: must divide ``v_dims``.
        kernel_size: odd width of the window, in taps; also as a pair of equal numbers.
        dilation: distance between taps, in pixels.
        qk_dims: channels of queries and keys, rounded up to a multiple of ``group_width``;
            ``None`` for ``2 * (embed_dims // 3)``.
        v_dims: channels of values; ``None`` for ``embed_dims``.
        group_width: channels per group of the ``k x k`` convolution.
        groups: groups of the ``1 x 1`` convolution.
        qkv_bias: whether the projection to q, k, v has a bias.
        qk_scale: factor of ``q * k``; ``None`` for ``(v_dims / num_heads) ** -0.5``. ELSA-Swin
            sets it to 1.
        lam: exponent of the multiplicative ghost head; 0 for none. All published models have 0.
        gamma: factor of the additive ghost head; 0 for none. All published models have 1.
        attn_drop_rate: dropout on the attention maps, before the ghost head.
        proj_drop_rate: dropout on the output.
        backend: name of a backend of :func:`mmlocal.ops.elsa_attention`; ``None`` for the fastest.

    Raises:
        ValueError: ``kernel_size`` is even, ``num_heads`` does not divide ``v_dims``, ``groups``
            does not divide the channels of the ``1 x 1`` convolution, a count is below 1, a rate is
            out of [0, 1], or a number is not finite.
        TypeError: an argument has another type.

    Note:
        This is the final variant of the paper. The official code and all published models have it.
        The Hadamard attention of eq. 7 is another one. Here a convolution mixes the products of
        neighbouring pixels before the logits are computed.

        The multiplicative ghost head starts as N(0, 1), as in the official code. If ``lam`` is not
        an integer, it starts as ``|N(0, 1)|``, because such a power of a negative number is not
        real.

    Source:
        ELSA, Zhou et al. 2021, section 5, eq. 7 and 8.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 7,
        dilation: int = 1,
        qk_dims: int | None = None,
        v_dims: int | None = None,
        group_width: int = 8,
        groups: int = 1,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        lam: float = 0.0,
        gamma: float = 1.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        kernel_size = as_side("kernel_size", kernel_size, odd=True)
        check_int(embed_dims=embed_dims, num_heads=num_heads, dilation=dilation)
        check_int(group_width=group_width, groups=groups)
        v_dims = embed_dims if v_dims is None else v_dims
        if qk_dims is None:
            check_int(3, embed_dims=embed_dims)  # the default of qk_dims must not be 0
            qk_dims = 2 * (embed_dims // 3)
        check_int(v_dims=v_dims, qk_dims=qk_dims)
        check_flag(qkv_bias=qkv_bias)
        check_number(lam=lam, gamma=gamma)
        check_rate(attn_drop_rate=attn_drop_rate, proj_drop_rate=proj_drop_rate)
        if qk_scale is not None:
            check_number(qk_scale=qk_scale)
        if v_dims % num_heads:
            raise ValueError(
                f"num_heads must divide v_dims={v_dims} (embed_dims={embed_dims} unless given), "
                f"got num_heads={num_heads}"
            )
        qk_dims = -(-qk_dims // group_width) * group_width
        attn_dims = num_heads * kernel_size**2
        if qk_dims % groups or attn_dims % groups:
            raise ValueError(
                f"groups must divide qk_dims={qk_dims} and num_heads * kernel_size**2={attn_dims}, "
                f"got groups={groups}"
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.qk_dims = qk_dims
        self.v_dims = v_dims
        self.kernel_size = kernel_size
        self.stride = 1
        self.padding = kernel_size // 2 * dilation
        self.dilation = dilation
        self.qk_scale = (v_dims // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.lam = lam
        self.gamma = gamma
        self.backend = backend

        self.qkv = PointwiseConv2d(embed_dims, 2 * qk_dims + v_dims, 1, bias=qkv_bias)
        # PyTorch's convolution has derivatives of any order, as the definition of the attention.
        conv = nn.Conv2d if backend == "reference" else GroupedConv2d
        self.attn_conv = conv(
            qk_dims,
            qk_dims,
            kernel_size,
            padding=self.padding,
            dilation=dilation,
            groups=qk_dims // group_width,
        )
        self.act = nn.GELU()
        self.attn_proj = ProjectedAttention(qk_dims, attn_dims, groups, attn_drop_rate)
        self.proj = Linear(v_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)

        self.ghost_mul = self.ghost_add = None
        if lam != 0:
            self.ghost_mul = nn.Parameter(torch.randn(v_dims, kernel_size, kernel_size))
            if lam != int(lam):
                self.ghost_mul.data.abs_()
        if gamma != 0:
            self.ghost_add = nn.Parameter(torch.empty(v_dims, kernel_size, kernel_size))
            nn.init.trunc_normal_(self.ghost_add, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        value, features = self._project(x)
        x = self.attn_proj(
            features,
            value,
            self.ghost_mul,
            self.ghost_add,
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            lam=self.lam,
            gamma=self.gamma,
            backend=self.backend,
        )
        return self.proj_drop(self.proj(x.permute(0, 2, 3, 1)))

    def attention_maps(self, x: Tensor) -> Tensor:
        """Compute how each pixel attends to its neighbours, to draw it.

        Args:
            x: ``(B, H, W, embed_dims)``.

        Returns:
            ``(B, num_heads, kernel_size**2, H, W)``, before dropout and ghost head. The taps of a
            pixel, including those outside the map, sum to 1.

        Raises:
            ValueError: ``x`` has any other shape.
        """
        logits = self.attn_proj(self._project(x)[1])
        return logits.unflatten(1, (-1, self.kernel_size**2)).softmax(dim=2)

    def ghost_filters(self, attn: Tensor, channels: Sequence[int]) -> Tensor:
        """Compute the filters that the ghost head makes of attention maps, to draw them.

        The filter of channel ``c`` is
        ``ghost_mul[c]**lam * attn[head of c] + gamma * ghost_add[c]``. The layer weights the values
        of that channel by the filter and adds them up.

        Args:
            attn: ``(..., heads, kernel_size**2, H, W)``, float: attention maps of all heads, or of
                the first ones, as :meth:`attention_maps` returns them.
            channels: channels of the values. They must belong to the heads of ``attn``.

        Returns:
            ``(..., len(channels), kernel_size**2, H, W)``, dtype of ``attn``.
        """

        def taps(ghost: Tensor) -> Tensor:
            return ghost.detach()[list(channels)].flatten(1)[..., None, None].to(attn)

        width = self.v_dims // self.num_heads
        filters = attn[..., [channel // width for channel in channels], :, :, :]
        if self.ghost_mul is not None:
            filters = filters * taps(self.ghost_mul) ** self.lam
        if self.ghost_add is not None:
            filters = filters + self.gamma * taps(self.ghost_add)
        return filters

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the values ``(B, v_dims, H, W)`` and the features ``(B, qk_dims, H, W)``."""
        check_map(x, self.embed_dims)
        # The convolutions read a permuted view as a channels-last tensor, so nothing is copied.
        qkv = self.qkv(x.permute(0, 3, 1, 2))
        q, k, value = qkv.split((self.qk_dims, self.qk_dims, self.v_dims), dim=1)
        product = q * k
        if self.qk_scale != 1:
            product = product * self.qk_scale
        return value, self.act(self.attn_conv(product))

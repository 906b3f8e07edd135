"""The ELSA layer: Hadamard attention and ghost head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
from mmlocal.ops.elsa import elsa_attention, elsa_attention_projected


class ProjectedAttention(nn.Module):
    """ELSA's last projection, ``1 x 1`` from features to logits, and the attention by them.

    Both are one module, as the op can fold the projection into its kernels: then the logits, by far
    the largest map of the layer, are never written. So this is no ``nn.Conv2d``, though its weight
    and bias have the shapes and the initialisation of one.

    Args:
        qk_dims: channels of the features.
        attn_dims: logits of a pixel.
        groups: groups of the projection.
        drop_rate: dropout on the attention maps.
    """

    def __init__(self, qk_dims: int, attn_dims: int, groups: int, drop_rate: float) -> None:
        super().__init__()
        self.groups = groups
        self.drop_rate = drop_rate
        conv = nn.Conv2d(qk_dims, attn_dims, 1, groups=groups)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(
        self,
        features: Tensor,
        value: Tensor | None = None,
        ghost_mul: Tensor | None = None,
        ghost_add: Tensor | None = None,
        **settings,
    ) -> Tensor:
        """Attend, or only compute the logits.

        Args:
            features: ``(B, qk_dims, H, W)``.
            value: ``(B, v_dims, H, W)``; ``None`` for the logits.
            ghost_mul: of :func:`mmlocal.ops.elsa_attention`, as is ``ghost_add``.
            **settings: the other arguments of that function.

        Returns:
            ``(B, v_dims, H, W)``, or the logits ``(B, attn_dims, H, W)``.
        """
        dropout = self.training and self.drop_rate > 0
        if value is not None and self.groups == 1 and not dropout:
            return elsa_attention_projected(
                value, features, self.weight, self.bias, ghost_mul, ghost_add, **settings
            )
        attn = F.conv2d(features, self.weight, self.bias, groups=self.groups)
        if value is None:
            return attn
        if dropout:
            maps = attn.unflatten(1, (-1, settings["kernel_size"] ** 2)).softmax(dim=2)
            attn = F.dropout(maps, self.drop_rate).flatten(1, 2)
        return elsa_attention(value, attn, ghost_mul, ghost_add, softmax=not dropout, **settings)

    def extra_repr(self) -> str:
        attn_dims, group_dims = self.weight.shape[:2]
        return f"{group_dims * self.groups}, {attn_dims}, groups={self.groups}"


class ELSA(Unscripted, nn.Module):
    """Local self-attention whose maps come from the Hadamard product of queries and keys.

    ``q * k`` is taken at each pixel, across all channels and before there are heads. A grouped
    ``k x k`` convolution, GELU and a ``1 x 1`` convolution map it to one logit per head and
    neighbour. The channels ``[n * v_dims / num_heads, (n + 1) * v_dims / num_heads)`` of the values
    use the attention map of head ``n``. The ghost head turns that map into one map per channel.

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
            uses 1.
        lam: exponent of the multiplicative ghost head; 0 for none, as in all published models.
        gamma: factor of the additive ghost head; 0 for none. All published models have 1.
        attn_drop_rate: dropout on the attention maps, before the ghost head.
        proj_drop_rate: dropout on the output.
        backend: of :func:`mmlocal.ops.elsa_attention`, which gets the ``1 x 1`` convolution too.

    Raises:
        ValueError: even ``kernel_size``; ``num_heads`` or ``groups`` that do not divide what they
            group; a count below 1; a rate out of [0, 1]; a number that is not finite.
        TypeError: an argument of another type.

    Note:
        This is the final variant of the paper, which its code and all published models have. It is
        not Hadamard attention as eq. 7 states it: the convolution lets products of neighbouring
        pixels mix before the logits are made.

        The multiplicative ghost head starts as N(0, 1), as in the official code, and as |N(0, 1)|
        where ``lam`` is no integer: a negative base has no real power there.

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
            check_int(3, embed_dims=embed_dims)  # a third of it twice
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
        self.dilation = dilation
        self.qk_scale = (v_dims // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.lam = lam
        self.gamma = gamma
        self.backend = backend

        self.qkv = nn.Conv2d(embed_dims, 2 * qk_dims + v_dims, 1, bias=qkv_bias)
        self.attn_conv = nn.Conv2d(
            qk_dims,
            qk_dims,
            kernel_size,
            padding=kernel_size // 2 * dilation,
            dilation=dilation,
            groups=qk_dims // group_width,
        )
        self.act = nn.GELU()
        self.attn_proj = ProjectedAttention(qk_dims, attn_dims, groups, attn_drop_rate)
        self.proj = nn.Linear(v_dims, embed_dims)
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
        """Args and returns: ``(B, H, W, embed_dims)``, any H and W.

        Raises:
            ValueError: any other shape.
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
        """How each pixel attends to its neighbours, before dropout and ghost head; to look at.

        Args:
            x: as in ``forward``.

        Returns:
            ``(B, num_heads, kernel_size**2, H, W)``. Sums to 1 over the taps, those outside the
            map included.

        Raises:
            ValueError: as in ``forward``.
        """
        logits = self.attn_proj(self._project(x)[1])
        return logits.unflatten(1, (-1, self.kernel_size**2)).softmax(dim=2)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, v_dims, H, W)`` values, ``(B, qk_dims, H, W)`` features for ``attn_proj``."""
        check_map(x, self.embed_dims)
        # A permuted view is a channels-last tensor to the convolutions: nothing is copied.
        qkv = self.qkv(x.permute(0, 3, 1, 2))
        q, k, value = qkv.split((self.qk_dims, self.qk_dims, self.v_dims), dim=1)
        product = q * k
        if self.qk_scale != 1:
            product = product * self.qk_scale
        return value, self.act(self.attn_conv(product))

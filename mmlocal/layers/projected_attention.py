"""Local attention, together with the projection that makes its logits."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.ops import elsa_attention, elsa_attention_projected


class ProjectedAttention(nn.Module):
    """ELSA's last ``1 x 1`` projection, from features to logits, and the attention by these logits.

    Both are one module, because the op can fold the projection into its kernels. It then never
    writes the logits, by far the largest map of the layer. Weight and bias have the shapes and the
    initialisation of an ``nn.Conv2d``.

    Args:
        qk_dims: channels of the features.
        attn_dims: number of logits of a pixel, ``num_heads * kernel_size**2``.
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
        **settings: Any,
    ) -> Tensor:
        """Attend, or only compute the logits.

        Args:
            features: ``(B, qk_dims, H, W)``.
            value: ``(B, v_dims, H, W)``; ``None`` to return the logits.
            ghost_mul: ``(v_dims, kernel_size, kernel_size)``, factors of the ghost head.
            ghost_add: ``(v_dims, kernel_size, kernel_size)``, terms of the ghost head.
            **settings: the other arguments of :func:`mmlocal.ops.elsa_attention`.

        Returns:
            ``(B, v_dims, H, W)``, or the logits ``(B, attn_dims, H, W)`` without ``value``.
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

"""Attention of a class token to the tokens of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlocal.layers.attention_checks import check_heads
from mmlocal.layers.checks import (
    Unscripted,
    check_flag,
    check_int,
    check_rate,
    check_tensor,
)
from mmlocal.layers.linear import Linear
from mmlocal.layers.mlp import MLP, hidden_dims_of
from mmlocal.layers.norm import LayerNorm


class ClassAttention(nn.Module):
    """``softmax(q k^T * head_dims ** -0.5) v``, with one query from the class token.

    Keys and values come from all tokens, the class token among them. The channels
    ``[n * embed_dims / num_heads, (n + 1) * embed_dims / num_heads)`` belong to head ``n``.

    Args:
        embed_dims: channels.
        num_heads: must divide ``embed_dims``.
        attn_drop_rate: dropout on the attention map.
        proj_drop_rate: dropout on the output.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, a count is below 1, or a rate is
            out of [0, 1].
        TypeError: an argument has another type.

    Source:
        CaiT, Touvron et al. 2021, eq. 3 to 5, https://arxiv.org/abs/2103.17239.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads)
        check_rate(attn_drop_rate=attn_drop_rate, proj_drop_rate=proj_drop_rate)
        check_heads(embed_dims, num_heads)
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.q = Linear(embed_dims, embed_dims, bias=False)
        self.kv = Linear(embed_dims, 2 * embed_dims, bias=False)
        self.proj = Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend.

        Args:
            tokens: ``(B, N, embed_dims)``. The class token is the first one.

        Returns:
            ``(B, 1, embed_dims)``.
        """
        q, k, v = self._project(tokens)
        dropout = self.attn_drop_rate if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def attention_maps(self, tokens: Tensor) -> Tensor:
        """Compute how the class token attends to all tokens, to draw it.

        Args:
            tokens: ``(B, N, embed_dims)``. The class token is the first one.

        Returns:
            ``(B, num_heads, N)``, before dropout. The weights of a head sum to 1.
        """
        q, k, _ = self._project(tokens)
        return (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(dim=3)[:, :, 0]

    def _project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the query of the class token, and the keys and values of all tokens.

        Each is ``(B, num_heads, 1 or N, head_dims)``.
        """
        split = (self.num_heads, -1)
        q = self.q(tokens[:, :1]).unflatten(2, split).transpose(1, 2)
        k, v = (part.unflatten(2, split).transpose(1, 2) for part in self.kv(tokens).chunk(2, 2))
        return q, k, v


class ClassAttentionBlock(Unscripted, nn.Module):
    """``c = c + attn(norm1([c, x]))``, then ``c + mlp(norm2(c))``: only the class token changes.

    Args:
        embed_dims: channels.
        num_heads: must divide ``embed_dims``.
        mlp_ratio: hidden channels of the MLP, divided by ``embed_dims``.
        drop_rate: dropout in the MLP and after attention.
        attn_drop_rate: dropout on the attention map.
        with_cp: whether to recompute activations in the backward pass to save memory.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, ``mlp_ratio`` leaves the MLP
            without hidden channels, a count is below 1, or a rate is out of [0, 1].
        TypeError: an argument has another type.

    Source:
        CaiT, Touvron et al. 2021, section 2.2. VOLO has no LayerScale.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims)
        hidden_dims = hidden_dims_of(embed_dims, mlp_ratio)
        check_rate(drop_rate=drop_rate)
        check_flag(with_cp=with_cp)
        self.embed_dims = embed_dims
        self.norm1 = LayerNorm(embed_dims)
        self.attn = ClassAttention(embed_dims, num_heads, attn_drop_rate, drop_rate)
        self.norm2 = LayerNorm(embed_dims)
        self.mlp = MLP(embed_dims, hidden_dims, drop_rate)
        self.with_cp = with_cp

    def forward(self, cls_token: Tensor, x: Tensor) -> Tensor:
        """Update the class token.

        Args:
            cls_token: ``(B, 1, embed_dims)``.
            x: ``(B, N, embed_dims)``, the tokens of a map, for any N of at least 1.

        Returns:
            ``(B, 1, embed_dims)``, the new class token.

        Raises:
            TypeError: an input is not a tensor.
            ValueError: an input has another shape.
        """
        check_tensor(cls_token)
        check_tensor(x)
        shape = (x.shape[0], 1, self.embed_dims)
        if x.dim() != 3 or x.shape[2] != self.embed_dims or cls_token.shape != shape:
            raise ValueError(
                f"cls_token and x must be (B, 1, {self.embed_dims}) and (B, N, {self.embed_dims}), "
                f"got {tuple(cls_token.shape)} and {tuple(x.shape)}"
            )
        if self.with_cp and torch.is_grad_enabled() and self.training:
            return checkpoint(self._forward, cls_token, x, use_reentrant=False)
        return self._forward(cls_token, x)

    def _forward(self, cls_token: Tensor, x: Tensor) -> Tensor:
        cls_token = cls_token + self.attn(self.norm1(torch.cat((cls_token, x), dim=1)))
        return cls_token + self.mlp(self.norm2(cls_token))

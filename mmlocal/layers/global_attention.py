"""Self-attention among all tokens of a map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_attention
from mmlocal.layers.checks import Unscripted, check_map
from mmlocal.layers.linear import Linear
from mmlocal.layers.local_attention import window_taps
from mmlocal.layers.mixers import register_mixer


@register_mixer
class GlobalAttention(Unscripted, nn.Module):
    """Multi-head self-attention ``softmax(q k^T * qk_scale) v`` among all tokens of a map.

    Within queries, keys and values, the channels
    ``[n * embed_dims / num_heads, (n + 1) * embed_dims / num_heads)`` belong to head ``n``. The
    layer knows nothing of positions: if the tokens change places, the outputs do the same.

    Args:
        embed_dims: channels in and out.
        num_heads: must divide ``embed_dims``.
        qkv_bias: whether the projection to q, k, v has a bias.
        qk_scale: factor of q k^T; ``None`` for ``(embed_dims / num_heads) ** -0.5``.
        attn_drop_rate: dropout on the attention map.
        proj_drop_rate: dropout on the output.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, a count is below 1, a rate is out
            of [0, 1], or a number is not finite.
        TypeError: an argument has another type.

    Source:
        Vaswani et al. 2017, eq. 1, and ViT, Dosovitskiy et al. 2020.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_attention(embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, proj_drop_rate)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.qk_scale = qk_scale
        self.attn_drop_rate = attn_drop_rate
        self.qkv = Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        q, k, v = self._project(x)
        out = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.attn_drop_rate if self.training else 0.0, scale=self.qk_scale
        )
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(x.shape)))

    def attention_taps(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Compute which tokens each token may read, as ``HasWindowAttention`` describes it."""
        return window_taps(height, height), window_taps(width, width)

    def attention_maps(self, x: Tensor) -> Tensor:
        """Compute how each token attends to all tokens, to draw it.

        Args:
            x: ``(B, H, W, embed_dims)``.

        Returns:
            ``(B, num_heads, H * W, H, W)``, before dropout. The sum over the third dimension is 1.

        Raises:
            ValueError: ``x`` has another shape.
        """
        q, k, _ = self._project(x)
        scale = q.shape[3] ** -0.5 if self.qk_scale is None else self.qk_scale
        maps = (q @ k.transpose(2, 3) * scale).softmax(dim=3)
        return maps.transpose(2, 3).unflatten(3, x.shape[1:3])

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute q, k and v, each ``(B, num_heads, H * W, head_dims)``."""
        check_map(x, self.embed_dims)
        qkv = self.qkv(x).flatten(1, 2).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

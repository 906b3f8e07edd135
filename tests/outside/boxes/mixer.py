"""A mixer: the op with parameters."""

from __future__ import annotations

from torch import Tensor, nn

from boxes.op import box_attention
from mmlocal.layers.mixers import register_mixer


@register_mixer
class BoxAttention(nn.Module):
    """Map ``(B, H, W, embed_dims)`` to the same shape."""

    stride = dilation = padding = 1
    kernel_size = 3

    def __init__(self, embed_dims: int, num_heads: int = 1) -> None:
        super().__init__()
        self.logits = nn.Linear(embed_dims, 9)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x).permute(0, 3, 1, 2)
        return box_attention(x.permute(0, 3, 1, 2), logits, kernel_size=3).permute(0, 2, 3, 1)

    def attention_maps(self, x: Tensor) -> Tensor:
        return self.logits(x).permute(0, 3, 1, 2).softmax(1)[:, None]

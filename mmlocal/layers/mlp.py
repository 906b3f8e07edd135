"""The two-layer perceptron of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from mmlocal.layers.gelu import GELU


class MLP(nn.Module):
    """Linear, GELU, dropout, Linear, dropout over the last dimension.

    Args:
        embed_dims: channels in and out.
        hidden_dims: channels in between.
        drop_rate: dropout after each Linear.
        gelu: ``'none'`` for the exact GELU, ``'tanh'`` for its approximation, JAX's default.
    """

    def __init__(
        self, embed_dims: int, hidden_dims: int, drop_rate: float = 0.0, gelu: str = "none"
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = GELU(gelu)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Args and returns: ``(..., embed_dims)``."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))

"""The two-layer perceptron of a transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from mmlocal.layers.checks import check_choice, check_int, check_number, check_rate
from mmlocal.layers.linear import Linear


class MLP(nn.Module):
    """``drop(fc2(drop(gelu(fc1(x)))))`` over the last dimension.

    Args:
        embed_dims: channels in and out.
        hidden_dims: channels in between.
        drop_rate: dropout after GELU and on the output.
        gelu: ``'none'`` for the exact GELU, ``'tanh'`` for the approximation that JAX has by
            default.

    Raises:
        ValueError: a count is below 1, ``drop_rate`` is out of [0, 1], or ``gelu`` is unknown.
        TypeError: an argument has another type.
    """

    def __init__(
        self, embed_dims: int, hidden_dims: int, drop_rate: float = 0.0, gelu: str = "none"
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, hidden_dims=hidden_dims)
        check_rate(drop_rate=drop_rate)
        check_choice(("none", "tanh"), gelu=gelu)
        self.fc1 = Linear(embed_dims, hidden_dims)
        self.act = nn.GELU(gelu)
        self.fc2 = Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., embed_dims)`` to the same shape."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def hidden_dims_of(embed_dims: int, mlp_ratio: float) -> int:
    """Compute the hidden channels of an MLP: ``int(embed_dims * mlp_ratio)``.

    Args:
        embed_dims: channels in and out.
        mlp_ratio: hidden channels, divided by ``embed_dims``.

    Returns:
        The number of channels.

    Raises:
        ValueError: ``mlp_ratio`` is not finite, or leaves no channel.
        TypeError: ``mlp_ratio`` is not a number.
    """
    check_number(mlp_ratio=mlp_ratio)
    hidden_dims = int(embed_dims * mlp_ratio)
    if hidden_dims < 1:
        raise ValueError(
            f"mlp_ratio must give at least one hidden channel out of {embed_dims}, got {mlp_ratio}"
        )
    return hidden_dims

"""The two-layer perceptron of a transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlocal.layers.checks import check_choice, check_int, check_number, check_rate
from mmlocal.layers.gelu import GELU
from mmlocal.layers.linear import Linear

# The most bytes of hidden channels that a thread should hold at once. They fit into its caches.
# Larger ones, when freed, would often go back to the system, and each page would be cleared again.
_HIDDEN_BYTES = 1024**2


class MLP(nn.Module):
    """``drop(fc2(drop(gelu(fc1(x)))))`` over the last dimension.

    Without gradients, a CPU takes a large map in parts, so it never holds all hidden channels.
    Hooks of the layers inside then see the parts.

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
        self.hidden_dims = hidden_dims
        self.fc1 = Linear(embed_dims, hidden_dims)
        self.act = GELU(gelu)
        self.fc2 = Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., embed_dims)`` to the same shape."""
        parts = self._parts(x)
        if parts < 3:  # few parts gain less than their products lose
            return self._forward(x)
        tokens = x.reshape(1, -1, x.shape[-1])
        return torch.cat([self._forward(part) for part in tokens.chunk(parts, dim=1)], 1).view_as(x)

    def _forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))

    def _parts(self, x: Tensor) -> int:
        """Return the number of parts in which a map is best taken."""
        # Random numbers of parts come in another order, which checkpointing would not expect.
        if (
            torch.is_grad_enabled()
            or (self.training and self.drop.p > 0)
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or x.device.type != "cpu"
        ):
            return 1
        tokens = torch.get_num_threads() * _HIDDEN_BYTES // (self.hidden_dims * x.element_size())
        # Each part reads the weights again, so it must be large beside them.
        return x.shape[:-1].numel() // max(tokens, 8 * x.shape[-1])


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

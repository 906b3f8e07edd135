"""DeMT's attention among the tokens of all tasks, and the query of each task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_heads
from mmlocal.layers.checks import Unscripted, check_flag, check_int, check_map
from mmlocal.layers.task_checks import check_task_maps


def linear_norm(embed_dims: int) -> nn.Sequential:
    """Build a linear layer with a layer norm behind it, which the papers call sMLP.

    Args:
        embed_dims: channels in and out.
    """
    return nn.Sequential(nn.Linear(embed_dims, embed_dims), nn.LayerNorm(embed_dims))


class MultiHeadAttention(nn.Module):
    """Multi-head attention ``softmax(q k^T / sqrt(d)) v`` with the parameters of PyTorch's module.

    ``nn.MultiheadAttention`` has a fast path for inference that writes out all weights. At the
    sizes of dense prediction they would need 57 GB. This module always uses PyTorch's fused
    attention.

    Args:
        embed_dims: channels.
        num_heads: must divide ``embed_dims``.

    Note:
        It loads the state dict of ``nn.MultiheadAttention(embed_dims, num_heads)``.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dims))
        self.out_proj = nn.Linear(embed_dims, embed_dims)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Attend.

        Args:
            query: ``(B, Q, embed_dims)``.
            tokens: ``(B, S, embed_dims)``, the source of keys and values.

        Returns:
            ``(B, Q, embed_dims)``.
        """
        q, k, v = (self._project(x, i) for i, x in enumerate((query, tokens, tokens)))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def project_values(self, tokens: Tensor) -> Tensor:
        """Return what a query gets that sees nothing but its own token.

        Args:
            tokens: ``(..., embed_dims)``.

        Returns:
            The same shape.
        """
        weight, bias = self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2]
        return self.out_proj(F.linear(tokens, weight, bias))

    def _project(self, x: Tensor, index: int) -> Tensor:
        weight, bias = self.in_proj_weight.chunk(3)[index], self.in_proj_bias.chunk(3)[index]
        return F.linear(x, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class TaskInteraction(Unscripted, nn.Module):
    """Self-attention among the pixels of all tasks, and ``sMLP``: ``norm(linear(attention(x)))``.

    There is no residual connection, and no norm before the attention.

    Args:
        embed_dims: channels in and out.
        num_heads: must divide ``embed_dims``.
        legacy: whether to compute what the released code of DeMT does with one image per process.
            It is only for released weights. Each token then attends to itself alone.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, or a count is below 1.
        TypeError: an argument has another type.

    Note:
        The paper describes attention among all ``T * H * W`` tokens. The released code gives
        batch-first tensors to a module that expects the batch second. With one image per process,
        each softmax has one key. With more, the code mixes the images of a batch; here, ``legacy``
        treats each image alone.

    Source:
        DeMT, Xu et al. 2023, section 3.3.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 4, legacy: bool = False) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads)
        check_flag(legacy=legacy)
        check_heads(embed_dims, num_heads)
        self.embed_dims = embed_dims
        self.legacy = legacy
        self.attention = MultiHeadAttention(embed_dims, num_heads)
        self.smlp = linear_norm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, H, W, embed_dims)``, with any T, H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
            TypeError: ``x`` is not a tensor of floats.
        """
        check_task_maps(x, self.embed_dims)
        if self.legacy:
            return self.smlp(self.attention.project_values(x))
        tokens = x.flatten(1, 3)
        return self.smlp(self.attention(tokens, tokens)).view(x.shape)


class TaskQuery(Unscripted, nn.Module):
    """Attention of one task's pixels to all tokens: ``x + sMLP(attention(x, tokens))``.

    Args:
        embed_dims: channels in and out.
        num_heads: must divide ``embed_dims``.
        legacy: whether to compute what the released code of DeMT does with one image per process.
            A pixel then attends to the same pixel of the tasks alone.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, or a count is below 1.
        TypeError: an argument has another type.

    Source:
        DeMT, Xu et al. 2023, section 3.4. :class:`TaskInteraction` explains ``legacy``.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 4, legacy: bool = False) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads)
        check_flag(legacy=legacy)
        check_heads(embed_dims, num_heads)
        self.embed_dims = embed_dims
        self.legacy = legacy
        self.attention = MultiHeadAttention(embed_dims, num_heads)
        self.smlp = linear_norm(embed_dims)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Query the tokens.

        Args:
            x: map of one task, ``(B, H, W, embed_dims)``.
            tokens: maps of all tasks, ``(B, T, H, W, embed_dims)``, from :class:`TaskInteraction`
                or :class:`~mmlocal.layers.InterTaskBlock`.

        Returns:
            ``(B, H, W, embed_dims)``.

        Raises:
            ValueError: a tensor has another shape.
            TypeError: a tensor is not of floats.
        """
        check_map(x, self.embed_dims)
        check_task_maps(tokens, self.embed_dims, name="tokens")
        if tokens.shape[0] != x.shape[0] or tokens.shape[2:4] != x.shape[1:3]:
            raise ValueError(
                f"tokens must be (B, T, H, W, C) with the B, H and W of x {tuple(x.shape)}, got "
                f"{tuple(tokens.shape)}"
            )
        if self.legacy:
            pixels = x.reshape(-1, 1, self.embed_dims)
            own = tokens.permute(0, 2, 3, 1, 4).reshape(-1, tokens.shape[1], self.embed_dims)
            out = self.attention(pixels, own)
        else:
            out = self.attention(x.flatten(1, 2), tokens.flatten(1, 3))
        return x + self.smlp(out).view(x.shape)

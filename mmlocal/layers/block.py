"""The transformer block of all backbones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlocal.layers.checks import Unscripted, check_flag, check_int, check_number, check_rate
from mmlocal.layers.drop_path import DropPath
from mmlocal.layers.mlp import MLP, hidden_dims_of
from mmlocal.layers.norm import LayerNorm


class TransformerBlock(Unscripted, nn.Module):
    """``x = x + attn(norm1(x))``, then ``x + mlp(norm2(x))``, for any mixer of ``(B, H, W, C)``.

    Args:
        embed_dims: channels in.
        attn: the mixer. It maps ``(B, H, W, embed_dims)`` to ``(B, H', W', out_dims)``.
        mlp_ratio: hidden channels of the MLP, divided by ``out_dims``.
        drop_rate: dropout in the MLP.
        drop_path_rate: probability of dropping each branch (stochastic depth).
        with_cp: whether to recompute activations in the backward pass to save memory.
        norm1: makes the norm before ``attn`` from the number of channels; ``nn.Identity`` for none.
        norm2: makes the norm before the MLP in the same way.
        gelu: approximation of GELU in the MLP: ``'none'`` or ``'tanh'``.
        skip: needed for an ``attn`` that changes the shape. It maps the input of ``attn`` to the
            shape of its output, and the block adds both. Such an ``attn`` is never dropped.
        out_dims: channels out; ``None`` for ``embed_dims``.
        layer_scale_init_value: initial value of one learned factor per channel and branch;
            ``None`` for no such factors.

    Raises:
        ValueError: a count is below 1, ``mlp_ratio`` leaves the MLP without hidden channels, or a
            rate is out of range.
        TypeError: an argument has another type.
    """

    def __init__(
        self,
        embed_dims: int,
        attn: nn.Module,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        norm1: Callable[[int], nn.Module] = LayerNorm,
        norm2: Callable[[int], nn.Module] = LayerNorm,
        gelu: str = "none",
        skip: nn.Module | None = None,
        out_dims: int | None = None,
        layer_scale_init_value: float | None = None,
    ) -> None:
        super().__init__()
        out_dims = embed_dims if out_dims is None else out_dims
        check_int(embed_dims=embed_dims, out_dims=out_dims)
        hidden_dims = hidden_dims_of(out_dims, mlp_ratio)
        check_rate(drop_rate=drop_rate)
        check_rate(below_one=True, drop_path_rate=drop_path_rate)
        check_flag(with_cp=with_cp)
        for name, norm in (("norm1", norm1), ("norm2", norm2)):
            if not callable(norm) or isinstance(norm, nn.Module):
                raise TypeError(f"{name} must make a norm from a number of channels, got {norm!r}")
        self.norm1 = norm1(embed_dims)
        self.attn = attn
        self.skip = skip
        self.norm2 = norm2(out_dims)
        self.mlp = MLP(out_dims, hidden_dims, drop_rate, gelu)
        self.drop_path = DropPath(drop_path_rate)
        self.with_cp = with_cp
        self.gamma1 = self.gamma2 = None
        if layer_scale_init_value is not None:
            check_number(layer_scale_init_value=layer_scale_init_value)
            self.gamma1 = nn.Parameter(torch.full((out_dims,), float(layer_scale_init_value)))
            self.gamma2 = nn.Parameter(torch.full((out_dims,), float(layer_scale_init_value)))

    def _forward(self, x: Tensor) -> Tensor:
        # Without gradients, the maps of the first function are freed before the second one runs.
        return self._add_mlp(self._add_attn(x))

    def _add_attn(self, x: Tensor) -> Tensor:
        branch = self.attn(self.norm1(x))
        if self.skip is None and branch.shape != x.shape:  # the sum below might broadcast
            raise ValueError(
                f"attn must keep the shape of its input {tuple(x.shape)}, but "
                f"{type(self.attn).__name__} returns {tuple(branch.shape)}; a block without a skip "
                "needs such an attn"
            )
        if self.gamma1 is not None:
            branch = branch * self.gamma1
        return x + self.drop_path(branch) if self.skip is None else self.skip(x) + branch

    def _add_mlp(self, x: Tensor) -> Tensor:
        branch = self.mlp(self.norm2(x))
        if self.gamma2 is not None:
            branch = branch * self.gamma2
        return x + self.drop_path(branch)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)`` to ``(B, H', W', out_dims)``.

        Raises:
            ValueError: there is no ``skip``, and ``attn`` does not keep the shape of the map.
        """
        if self.with_cp and torch.is_grad_enabled() and self.training:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

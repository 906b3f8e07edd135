"""The block of DWNet."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlocal.layers.batch_norm import batch_norm, frozen_statistics
from mmlocal.layers.checks import Unscripted, check_flag, check_int, check_map, check_rate
from mmlocal.layers.drop_path import DropPath
from mmlocal.layers.linear import PointwiseConv2d
from mmlocal.layers.mlp import MLP, hidden_dims_of
from mmlocal.layers.window_msa import crop_map


class DWNetBlock(Unscripted, nn.Module):
    """A mixer between two ``1 x 1`` convolutions, then an MLP, both with batch normalization::

        x = x + bn3(conv2(relu(bn2(attn(relu(bn1(conv1(x))))))))
        x = x + mlp(bn_mlp(x))

    Args:
        embed_dims: channels in and out.
        attn: the mixer. It maps ``(B, H, W, embed_dims)`` to the same shape.
        mlp_ratio: hidden channels of the MLP, divided by ``embed_dims``.
        drop_rate: dropout in the MLP.
        drop_path_rate: probability of dropping each branch (stochastic depth).
        with_cp: whether to recompute activations in the backward pass to save memory. The running
            statistics of batch norms count each batch once.
        pad_size_divisor: the first branch pads zeros at the right and bottom until both sides of
            the map are multiples of this number. It cuts its output back to the map.

    Raises:
        ValueError: a count is below 1, ``mlp_ratio`` leaves the MLP without hidden channels, or a
            rate is out of range.
        TypeError: an argument has another type.

    Note:
        Padding changes the output. ``bn1`` gives the padded positions the value of its bias, and a
        dynamic mixer averages over them.

    Source:
        On the Connection between Local Attention and Dynamic Depth-wise Convolution, Han et al.
        2022, https://arxiv.org/abs/2106.04263; official code Atten4Vis/DemystifyLocalViT (MIT).
    """

    def __init__(
        self,
        embed_dims: int,
        attn: nn.Module,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        pad_size_divisor: int = 1,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, pad_size_divisor=pad_size_divisor)
        hidden_dims = hidden_dims_of(embed_dims, mlp_ratio)
        check_rate(drop_rate=drop_rate)
        check_rate(below_one=True, drop_path_rate=drop_path_rate)
        check_flag(with_cp=with_cp)
        self.embed_dims = embed_dims
        self.pad_size_divisor = pad_size_divisor
        self.conv1 = PointwiseConv2d(embed_dims, embed_dims, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(embed_dims)
        self.attn = attn
        self.bn2 = nn.BatchNorm2d(embed_dims)
        self.conv2 = PointwiseConv2d(embed_dims, embed_dims, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(embed_dims)
        self.bn_mlp = nn.BatchNorm2d(embed_dims)
        self.mlp = MLP(embed_dims, hidden_dims, drop_rate)
        self.drop_path = DropPath(drop_path_rate)
        self.with_cp = with_cp

    def branch(self, x: Tensor) -> Tensor:
        """Compute the first branch of ``(B, H, W, embed_dims)``; the shape stays the same."""
        height, width = x.shape[1:3]
        divisor = self.pad_size_divisor
        x = F.pad(x, (0, 0, 0, -width % divisor, 0, -height % divisor))
        # Channels-last in memory is what the convolutions read: nothing is copied.
        x = batch_norm(self.bn1, self.conv1(x.permute(0, 3, 1, 2))).relu().permute(0, 2, 3, 1)
        mixed = self.attn(x)
        if mixed.shape != x.shape:
            raise ValueError(
                f"attn must keep the shape of its input {tuple(x.shape)}, but "
                f"{type(self.attn).__name__} returns {tuple(mixed.shape)}"
            )
        x = batch_norm(self.bn2, mixed.permute(0, 3, 1, 2)).relu()
        x = batch_norm(self.bn3, self.conv2(x)).permute(0, 2, 3, 1)
        return crop_map(x, height, width)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.branch(x))
        normed = batch_norm(self.bn_mlp, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.mlp(normed))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape, ``attn`` changes the shape, or a batch norm is in
                training mode and sees one image with a map of 1x1.
        """
        check_map(x, self.embed_dims)
        if not (self.with_cp and torch.is_grad_enabled() and self.training):
            return self._forward(x)
        if torch.compiler.is_compiling():  # a compiled graph moves the statistics only once
            return checkpoint(self._forward, x, use_reentrant=False)
        return checkpoint(self._forward, x, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts of the forward pass and of its repetition in the backward pass."""
        return nullcontext(), frozen_statistics(self)

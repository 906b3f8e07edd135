"""The small network that predicts the kernels of a dynamic depth-wise convolution."""

from __future__ import annotations

from torch import Tensor, nn

from mmlocal.layers.batch_norm import batch_norm
from mmlocal.layers.checks import check_int
from mmlocal.layers.linear import PointwiseConv2d


class KernelPredictor(nn.Module):
    """``expand(relu(bn(reduce(x))))``, with ``1 x 1`` convolutions.

    Args:
        embed_dims: channels in.
        out_dims: channels out: the numbers of all kernels of a position.
        reduction: the layer has ``embed_dims // reduction`` channels in between.
        reduce_bias: whether ``reduce`` has a bias. Batch normalization cancels it in training.

    Raises:
        ValueError: a count is below 1, or ``reduction`` leaves no channel.
        TypeError: a count is not an integer.
    """

    def __init__(self, embed_dims: int, out_dims: int, reduction: int, reduce_bias: bool) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, reduction=reduction)
        if embed_dims < reduction:
            raise ValueError(
                f"reduction must be at most embed_dims={embed_dims}, got reduction={reduction}"
            )
        hidden_dims = embed_dims // reduction
        self.reduce = PointwiseConv2d(embed_dims, hidden_dims, 1, bias=reduce_bias)
        self.bn = nn.BatchNorm2d(hidden_dims)
        self.act = nn.ReLU()
        self.expand = PointwiseConv2d(hidden_dims, out_dims, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, embed_dims, H, W)`` to ``(B, out_dims, H, W)``.

        Raises:
            ValueError: the batch norm is in training mode and sees one image with a 1x1 map.
        """
        return self.expand(self.act(batch_norm(self.bn, self.reduce(x))))

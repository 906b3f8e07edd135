"""The homogeneous dynamic depth-wise convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, as_side, check_flag, check_int, check_map
from mmlocal.layers.kernel_predictor import KernelPredictor
from mmlocal.layers.mixers import register_mixer
from mmlocal.ops import elsa_attention
from mmlocal.ops.plain_common import entries, pad_sides, sum_of_products, taps_of


@register_mixer
class DynamicDepthwiseConv(Unscripted, nn.Module):
    """A depth-wise convolution with kernels that the layer predicts for each image::

        out[c, p] = bias[c] + sum_t kernels[c, t] * x[c, p + offset(t)]
        kernels   = expand(relu(bn(reduce(mean over the positions of x))))

    Each image and channel has one kernel, which all positions share. A kernel is neither normalised
    nor activated. The map is zero outside.

    Args:
        embed_dims: channels in and out.
        num_heads: not used, because each channel has its own kernel. All mixers take it.
        kernel_size: odd width of the kernels; also as a pair of equal numbers.
        reduction: the predictor has ``embed_dims // reduction`` channels in between.
        bias: whether to add a learned number per channel, which starts at 0.

    Raises:
        ValueError: ``kernel_size`` is even, a count is below 1, or ``reduction`` is larger than
            ``embed_dims``.
        TypeError: an argument has another type.

    Note:
        The predictor's batch norm sees one value per image and channel. Training with one image
        per process therefore needs SyncBN or a batch norm in eval mode.

        Predicted kernels have no bound, and sums over 49 taps overflow float16 easily. Under
        autocast, the layer computes kernels and sums in float32 and returns float32.

    Source:
        On the Connection between Local Attention and Dynamic Depth-wise Convolution, Han et al.
        2022, https://arxiv.org/abs/2106.04263; official code Atten4Vis/DemystifyLocalViT (MIT).
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int = 1,
        kernel_size: int | tuple[int, int] = 7,
        reduction: int = 4,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads)
        check_flag(bias=bias)
        kernel_size = as_side("kernel_size", kernel_size, odd=True)
        self.embed_dims = embed_dims
        self.kernel_size = kernel_size
        self.predictor = KernelPredictor(
            embed_dims, embed_dims * kernel_size**2, reduction, reduce_bias=False
        )
        self.bias = nn.Parameter(torch.zeros(embed_dims)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape, or it is one image and the predictor's batch norm
                is in training mode.
        """
        check_map(x, self.embed_dims)
        if x.shape[0] == 0:  # the convolution below would have no channels
            return x.clone()
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._forward(x.to(self.predictor.expand.weight.dtype))
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(1, 2))[:, :, None, None]
        kernels = self.predictor(pooled).view(x.shape[0], -1, self.kernel_size, self.kernel_size)
        trains_on_cpu = x.is_cpu and torch.is_grad_enabled()
        # ONNX needs the number of groups, so the number of images.
        exporting = torch.onnx.is_in_onnx_export()
        by_taps = exporting and not isinstance(x.shape[0], int)
        by_op = trains_on_cpu and not exporting
        how = convolve_by_taps if by_taps else convolve_by_op if by_op else convolve
        x = how(x, kernels, self.kernel_size)
        return x if self.bias is None else x + self.bias


def convolve(x: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    """Convolve each image with its own kernels, by one grouped convolution.

    Args:
        x: ``(B, H, W, C)``.
        kernels: ``(B, C, kernel_size, kernel_size)``, dtype of ``x``.
        kernel_size: odd width of the kernels, a plain number even under ``torch.jit.trace``.

    Returns:
        ``(B, H, W, C)``.
    """
    batch, height, width, dims = x.shape
    maps = x.permute(0, 3, 1, 2).reshape(1, batch * dims, height, width)
    out = F.conv2d(
        maps, kernels.flatten(0, 1)[:, None], padding=kernel_size // 2, groups=batch * dims
    )
    return out.view(batch, dims, height, width).permute(0, 2, 3, 1)


def convolve_by_op(x: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    """Convolve as :func:`convolve` does, by :func:`mmlocal.ops.elsa_attention` without attention.

    The additive ghost head of that op is a depth-wise convolution. At the sizes of DWNet-T, 4
    images of 224 pixels, PyTorch's grouped convolution takes 2 to 3.5 times as long for a training
    step on a CPU, and a half to all of the time for inference.

    Args:
        x: ``(B, H, W, C)``.
        kernels: ``(B, C, kernel_size, kernel_size)``, dtype of ``x``.
        kernel_size: odd width of the kernels, a plain number even under ``torch.jit.trace``.

    Returns:
        ``(B, H, W, C)``.
    """
    batch, height, width, dims = x.shape
    # The op has a kernel per channel, so the images become channels; in memory, channels are last.
    maps = x.permute(1, 2, 0, 3).reshape(1, height, width, batch * dims).permute(0, 3, 1, 2)
    nothing = maps.new_zeros(1, height, width, kernel_size**2).permute(0, 3, 1, 2)
    out = elsa_attention(
        maps,
        nothing,
        ghost_add=kernels.flatten(0, 1),
        kernel_size=kernel_size,
        lam=0.0,
        softmax=False,
    )
    return out.view(batch, dims, height, width).permute(0, 2, 3, 1)


def convolve_by_taps(x: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    """Convolve as :func:`convolve` does, one tap after the other, for ONNX.

    Args:
        x: ``(B, H, W, C)``.
        kernels: ``(B, C, kernel_size, kernel_size)``, dtype of ``x``.
        kernel_size: odd width of the kernels.

    Returns:
        ``(B, H, W, C)``.
    """
    maps = x.permute(0, 3, 1, 2)
    padded = pad_sides(maps, kernel_size // 2)
    taps = taps_of(padded, kernel_size)
    weights = entries(kernels.flatten(2)[..., None], 2)
    return sum_of_products(zip(taps, weights, strict=True)).permute(0, 2, 3, 1)

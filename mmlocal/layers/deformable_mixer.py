"""DeMT's deformable mixer: each channel is sampled at positions of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.batch_norm import batch_norm
from mmlocal.layers.checks import Unscripted, check_flag, check_int, check_tensor

# Rows and columns of a 3x3 window, which the released code adds to the positions of the pixels.
_WINDOW_ROWS = (-1, -1, -1, 0, 0, 0, 1, 1, 1)
_WINDOW_COLS = (-1, 0, 1, -1, 0, 1, -1, 0, 1)


class DeformableMixer(Unscripted, nn.Module):
    """Blocks of a 1x1 convolution, and a deformable 1x1 convolution with a residual connection.

    One block, with a batch norm ``BN`` after each activation::

        y = BN(gelu(conv(x)))
        out = y + BN(gelu(deform(y)))

    Args:
        embed_dims: channels in and out, an even number.
        depth: number of blocks.
        residual_first: whether the line with ``deform`` comes first in a block. The code of DeMT
            had this order until March 2023. It has the same parameters.

    Raises:
        ValueError: ``embed_dims`` is odd, or a count is below 1.
        TypeError: an argument has another type.

    Source:
        DeMT: Deformable Mixer Transformer for Multi-Task Learning of Dense Prediction, Xu et al.
        2023, section 3.2, and its code.
    """

    def __init__(self, embed_dims: int = 256, depth: int = 1, residual_first: bool = False) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, depth=depth)
        check_flag(residual_first=residual_first)
        self.embed_dims = embed_dims
        self.blocks = nn.Sequential(*(_Block(embed_dims, residual_first) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, embed_dims, H, W)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape, or it is one image of 1x1 and a batch norm is in
                training mode.
            TypeError: ``x`` is not a tensor.
        """
        check_tensor(x)
        if x.dim() != 4 or x.shape[1] != self.embed_dims:
            raise ValueError(
                f"x must be (B, embed_dims={self.embed_dims}, H, W), got {tuple(x.shape)}"
            )
        return self.blocks(x)


class _Block(nn.Module):
    """One block of :class:`DeformableMixer`."""

    def __init__(self, embed_dims: int, residual_first: bool) -> None:
        super().__init__()
        self.residual_first = residual_first
        self.conv = nn.Conv2d(embed_dims, embed_dims, 1)
        self.norm1 = nn.BatchNorm2d(embed_dims)
        self.deform = DeformableConv1x1(embed_dims)
        self.norm2 = nn.BatchNorm2d(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        if self.residual_first:
            return self._pointwise(self._residual(x))
        return self._residual(self._pointwise(x))

    def _pointwise(self, x: Tensor) -> Tensor:
        return batch_norm(self.norm1, F.gelu(self.conv(x)))

    def _residual(self, x: Tensor) -> Tensor:
        return x + batch_norm(self.norm2, F.gelu(self.deform(x)))


class DeformableConv1x1(nn.Module):
    """A 1x1 convolution of a map whose channels are displaced, each by its own offsets.

    A 3x3 convolution makes 18 numbers per pixel. Nine of them get the row of the pixel added, from
    1, and nine get its column. A second 3x3 convolution, with two groups, turns them into a
    vertical and a horizontal offset per channel. Bilinear interpolation reads each channel at its
    offsets, with 0 outside the map.

    Args:
        embed_dims: channels in and out, an even number.

    Raises:
        ValueError: ``embed_dims`` is odd.

    Note:
        The groups follow the released code: rows give both offsets of the first half of the
        channels, and columns give both offsets of the second half. The convolutions see absolute
        positions, so the layer is not shift-equivariant. Positions need more digits than half
        precision has, and the layer computes them in float32 under autocast.

        The gradient of PyTorch's ``grid_sample`` is not deterministic on GPUs.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims)
        if embed_dims % 2:
            raise ValueError(
                f"embed_dims must be even, because rows and columns each give the offsets of half "
                f"of the channels, got {embed_dims}"
            )
        self.positions = nn.Conv2d(embed_dims, 18, 3, padding=1)
        nn.init.zeros_(self.positions.weight)
        self.offsets = nn.Conv2d(18, 2 * embed_dims, 3, padding=1, groups=2)
        self.conv = nn.Conv2d(embed_dims, embed_dims, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, embed_dims, H, W)`` to the same shape."""
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                sampled = self._sample(x.to(self.conv.weight.dtype))
        else:
            sampled = self._sample(x)
        return self.conv(sampled)

    def _sample(self, x: Tensor) -> Tensor:
        """Read each channel at its offsets."""
        batch, channels, height, width = x.shape
        rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
        cols = torch.arange(width, device=x.device, dtype=x.dtype)
        window = torch.tensor((_WINDOW_ROWS, _WINDOW_COLS), device=x.device, dtype=x.dtype)
        row_cells, col_cells = window[..., None, None].unbind(0)
        absolute = torch.cat(
            (
                (row_cells + rows + 1).expand(-1, height, width),
                (col_cells + cols + 1).expand(-1, height, width),
            )
        )
        offsets = self.offsets(self.positions(x) + absolute)
        # grid_sample has -1 and 1 at the outer edges of the map. This also holds for one pixel.
        grid = torch.stack(
            (
                torch.add((2 * cols + 1) / width - 1, offsets[:, 1::2], alpha=2 / width),
                torch.add((2 * rows + 1) / height - 1, offsets[:, ::2], alpha=2 / height),
            ),
            dim=-1,
        )
        planes = x.reshape(batch * channels, 1, height, width)
        out = F.grid_sample(planes, grid.flatten(0, 1), align_corners=False)
        return out.view(batch, channels, height, width)

"""The input of a multi-task head: the maps of a backbone become one map of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class MapEncoder(nn.Module):
    """Resize the maps of a backbone to one size, join their channels, and project each pixel.

    ``norm(proj(concat(resize(maps))))``, where ``proj`` is linear and ``norm`` a LayerNorm. Linear
    maps of channels and resizing can change places, so each map is projected in its own size. The
    result is the same, and the joined map of 1440 channels for Swin-T is never made.

    Args:
        in_channels: channels of each used map.
        channels: channels out.
        in_index: index of each used map among the maps of the backbone. All maps get the size of
            the first one.
        align_corners: argument of :func:`torch.nn.functional.interpolate`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        in_index: Sequence[int],
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = list(in_channels)
        self.in_index = list(in_index)
        self.align_corners = align_corners
        self.proj = nn.Linear(sum(in_channels), channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Encode the maps.

        Args:
            feats: maps ``(B, C_i, H_i, W_i)`` of a backbone.

        Returns:
            ``(B, channels, H, W)`` in the size of the first used map.

        Raises:
            ValueError: there are too few maps, or one has other channels.
        """
        maps = self._select(feats)
        size = maps[0].shape[2:]
        projected = self.proj.bias[:, None, None]
        weights = self.proj.weight[:, :, None, None].split(self.in_channels, dim=1)
        for x, weight in zip(maps, weights, strict=True):
            x = F.conv2d(x, weight)
            if x.shape[2:] != size:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)
            projected = projected + x
        return self.norm(projected.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _select(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """Pick the used maps, and check their channels."""
        if len(feats) <= max(self.in_index):
            raise ValueError(
                f"in_index of the head names map {max(self.in_index)}, but the backbone returns "
                f"{len(feats)} maps; check out_indices of the backbone, and in_index"
            )
        maps = [feats[index] for index in self.in_index]
        found = [x.shape[1] for x in maps]
        if found != self.in_channels:
            raise ValueError(
                "in_channels of the head must be the channels of the maps that in_index names, "
                f"{found}, got {self.in_channels}"
            )
        return maps

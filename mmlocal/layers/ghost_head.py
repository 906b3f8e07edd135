"""The ghost head, for any layer with attention maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlocal.layers.checks import check_int, check_number


class GhostHead(nn.Module):
    """Static tables that turn the attention map of each head into several maps.

    Map ``g`` belongs to head ``n = g // (num_maps / heads)``. Its weight for a query and a key at
    the offset ``o`` is::

        mul[g, o]**lam * map[n, query, key] + gamma * add[g, o]

    A layer applies it after the normalisation of its maps. The channels of its values then form
    ``num_maps`` groups of equal width, in order.

    Args:
        num_maps: number of maps that come out, a multiple of the number of heads.
        num_offsets: number of offsets from query to key.
        lam: exponent of the multiplicative table; 0 for none.
        gamma: factor of the additive table; 0 for none.

    Raises:
        ValueError: a count is below 1, or a number is not finite.
        TypeError: an argument has another type.

    Note:
        The multiplicative table starts as N(0, 1) and the additive one as a truncated normal of
        0.02, as in the paper. If ``lam`` is not an integer, the first starts as the absolute value
        of N(0, 1), because such a power of a negative number is not real.

        With one map for each channel, this is the ghost head of :class:`~mmlocal.layers.ELSA`.
        :class:`~mmlocal.layers.GhostAttention` resizes its tables with the map.
        :class:`~mmlocal.layers.UnifiedLocalAttention` with the preset ``"lsa"`` is Swin's window
        attention with this ghost head.

    Source:
        ELSA, Zhou et al. 2021, eq. 8 and appendix C.
    """

    def __init__(
        self, num_maps: int, num_offsets: int, lam: float = 1.0, gamma: float = 1.0
    ) -> None:
        super().__init__()
        check_int(num_maps=num_maps, num_offsets=num_offsets)
        check_number(lam=lam, gamma=gamma)
        self.lam = lam
        self.gamma = gamma
        self.mul = self.add = None
        if lam != 0:
            self.mul = nn.Parameter(torch.randn(num_maps, num_offsets))
            if lam != int(lam):
                self.mul.data.abs_()
        if gamma != 0:
            self.add = nn.Parameter(torch.empty(num_maps, num_offsets))
            nn.init.trunc_normal_(self.add, std=0.02)

    def forward(self, maps: Tensor, index: Tensor) -> Tensor:
        """Make the maps.

        Args:
            maps: ``(..., heads, *shape)``, attention maps after their normalisation.
            index: int64, broadcastable to ``shape``: the offset of each weight of a map.

        Returns:
            ``(..., num_maps, *shape)``, dtype of ``maps``.
        """
        heads = -1 - index.dim()
        for table in (self.mul, self.add):
            if table is not None:
                maps = maps.repeat_interleave(table.shape[0] // maps.shape[heads], dim=heads)
        if self.mul is not None:
            maps = maps * self.mul[:, index].to(maps.dtype) ** self.lam
        if self.add is not None:
            maps = maps + self.gamma * self.add[:, index].to(maps.dtype)
        return maps

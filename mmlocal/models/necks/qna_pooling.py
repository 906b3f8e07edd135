"""Pooling by learned queries, for classification."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor

from mmlocal.layers import QnA
from mmlocal.layers.checks import as_side, check_flag, check_int
from mmlocal.models.backbones.loading import resize_tables_on_load
from mmlocal.registry import MODELS


@MODELS.register_module()
class QnAPooling(BaseModule):
    """Pool a map by one window of QnA that covers it.

    This is the pooling of QnA-ViT's official heads ``qnav1`` and ``qnav2``.

    Args:
        in_channels: channels of the map.
        num_heads: must divide ``in_channels``.
        map_size: height and width of the map, in tokens; 7 for images of 224 pixels. Tables of a
            checkpoint with another size are resized.
        num_queries: number of learned queries.
        add_mean: whether to add the mean over the map, as ``qnav2`` does.
        init_cfg: MMEngine's config of the initialisation; ``None`` for the official one.

    Raises:
        ValueError: ``num_heads`` does not divide ``in_channels``, or a count is below 1.
        TypeError: an argument has another type.

    Source:
        Official code of Learned Queries for Efficient Local Attention, Arar et al. 2022.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        map_size: int = 7,
        num_queries: int = 2,
        add_mean: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_int(in_channels=in_channels)
        check_flag(add_mean=add_mean)
        self.map_size = as_side("map_size", map_size)
        self.add_mean = add_mean
        self.qna = QnA(in_channels, num_heads, self.map_size, num_queries, padding=0)
        resize_tables_on_load(self, antialias=True)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Pool the last map.

        Args:
            inputs: the map ``(B, in_channels, map_size, map_size)``, or a sequence that ends with
                it.

        Returns:
            A tuple of one tensor ``(B, in_channels)``.

        Raises:
            ValueError: the map has another size.
        """
        x = inputs if isinstance(inputs, Tensor) else inputs[-1]
        if x.dim() != 4:
            raise ValueError(f"inputs must be (B, in_channels, H, W), got {tuple(x.shape)}")
        if x.shape[2:] != (self.map_size, self.map_size):
            raise ValueError(
                f"map_size must be the size of the map, {x.shape[2]}x{x.shape[3]} here, got "
                f"{self.map_size}"
            )
        x = x.permute(0, 2, 3, 1)
        pooled = self.qna(x).flatten(1)
        return (pooled + x.mean(dim=(1, 2)),) if self.add_mean else (pooled,)

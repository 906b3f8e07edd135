"""A backbone that uses the mixer by its name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from boxes import mixer
from mmlocal.layers import MIXERS, PatchEmbed, PatchMerging, TransformerBlock
from mmlocal.models.backbones.base import LocalBackbone
from mmlocal.registry import MODELS

assert mixer.BoxAttention is MIXERS["BoxAttention"]


@MODELS.register_module()
class BoxNet(LocalBackbone):
    arch_zoo = {"tiny": dict(embed_dims=8, depths=(1, 2))}  # noqa: RUF012

    def __init__(
        self,
        arch: str | dict = "tiny",
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1),
        frozen_stages: int = -1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        arch = self._resolve_arch(arch, {"embed_dims", "depths"})
        dims = arch["embed_dims"]
        self.patch_embed = PatchEmbed(3, dims)
        self._build_stages(
            [dims, 2 * dims], arch["depths"], drop_path_rate, out_indices, frozen_stages
        )

    def _make_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        dims = self.num_features[stage]
        return TransformerBlock(
            dims, MIXERS["BoxAttention"](dims, 1), drop_path_rate=drop_path_rate
        )

    def _make_downsample(self, stage: int, drop_path_rate: float) -> nn.Module:
        return PatchMerging(self.num_features[stage], self.num_features[stage + 1])

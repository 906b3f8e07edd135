"""Swin Transformer with any mixer in each block.

Source:
    Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, Liu et al. 2021,
    https://arxiv.org/abs/2103.14030.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mmlocal.layers import DWNetBlock, PatchEmbed, PatchMerging, TransformerBlock, build_mixer
from mmlocal.layers.checks import (
    as_side,
    check_choice,
    check_flag,
    check_int,
    check_ints,
    check_rate,
    is_sequence,
)
from mmlocal.layers.mixers import find_mixer
from mmlocal.models.backbones.base import TRUNC_NORMAL, LocalBackbone, check_per_stage
from mmlocal.models.backbones.position import (
    add_position,
    position_embedding,
    pretrain_map_size,
)
from mmlocal.registry import MODELS

# Kinds of blocks, by name.
BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "transformer": TransformerBlock,
    "dwnet": DWNetBlock,
}
ARCH_KEYS = frozenset({"embed_dims", "depths", "num_heads"})

Mixer = Mapping[str, Any]


@MODELS.register_module()
class LocalSwin(LocalBackbone):
    """Swin Transformer for classification and dense prediction, with a mixer of your choice.

    A mixer is a layer that mixes the tokens of a map. ``mixers`` names the mixer of each stage, or
    of each block, and all else stays the same. The default is Swin Transformer itself::

        LocalSwin("tiny")
        LocalSwin("tiny", mixers=dict(type="ELSA", kernel_size=7))
        LocalSwin("tiny", mixers=[dict(type="QnA")] * 3 + [dict(type="WindowAttention")])
        LocalSwin("tiny", mixers=dict(type=MyMixer))

    Images may have any size of at least one patch. The backbone pads the image with zeros to whole
    patches, and pads odd maps before merging. The output of stage ``i`` has ``embed_dims * 2**i``
    channels and height ``ceil(ceil(H / patch_size) / 2**i)``.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict with ``embed_dims`` (channels of the
            first stage, doubled at each merging), ``depths`` and ``num_heads`` (one number per
            stage).
        mixers: one dict for all stages, or a sequence with one entry per stage. An entry is a dict,
            or a sequence with one dict per block. A dict is a config of
            :func:`~mmlocal.layers.build_mixer`: ``type`` is a name in
            :data:`~mmlocal.layers.MIXERS` or a class, and the other keys are its arguments.
            ``None`` for ``dict(type='WindowAttention')``, as in Swin Transformer.
        block: kind of the blocks. ``'transformer'`` for the pre-norm
            :class:`~mmlocal.layers.TransformerBlock`, ``'dwnet'`` for
            :class:`~mmlocal.layers.DWNetBlock` with its batch norms.
        in_channels: channels of the image.
        patch_size: width of a patch in pixels; also as a pair of equal numbers.
        mlp_ratio: hidden channels of an MLP, divided by its channels.
        drop_rate: dropout after the patch embedding and in the MLPs. Rates inside a mixer are
            arguments of the mixer.
        drop_path_rate: rate of stochastic depth of the last block. The rates of the other blocks
            rise linearly from 0 to it.
        patch_norm: whether a LayerNorm follows the patch embedding.
        use_abs_pos_embed: whether to add a learned position embedding, resized to the map.
        pretrain_img_size: image size in pixels, one number or height and width. It decides the size
            in which the backbone stores the position embedding.
        out_indices: stages to return, each through its own norm. Stages after the last one returned
            are not built, so that no parameter lacks a gradient.
        frozen_stages: -1 for none; ``n`` freezes the patch embedding, the position embedding and
            the first ``n`` stages with their output norms, as mmdet's Swin does.
        norm_eval: whether batch norms stay in eval mode.
        with_cp: whether to recompute activations of the blocks in the backward pass to save memory.
        init_cfg: MMEngine's config of the initialisation; ``None`` for a truncated normal of 0.02
            in linear layers, also inside mixers, and PyTorch's default in convolutions.
            ``Pretrained`` raises if the checkpoint does not fit.

    Raises:
        ValueError: ``arch``, ``block`` or a mixer is unknown or incomplete, ``mixers`` does not
            have one entry per stage or block, a stage has no blocks, a count is below 1, a rate,
            ``out_indices`` or ``frozen_stages`` is out of range, ``out_indices`` repeats a stage, a
            patch is not a square, or a mixer refuses a value.
        TypeError: an argument has another type, or a mixer lacks an argument.

    Note:
        Two blocks of a stage differ if the mixer has an argument ``shift``: it is true in every
        second block. A mixer that does not keep the size of the map raises ``ValueError`` in the
        forward pass.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
        "small": dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
        "base": dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    }

    def __init__(
        self,
        arch: str | dict = "tiny",
        mixers: Mixer | Sequence[Mixer | Sequence[Mixer]] | None = None,
        block: str = "transformer",
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = 4,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        use_abs_pos_embed: bool = False,
        pretrain_img_size: int | tuple[int, int] = 224,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(TRUNC_NORMAL if init_cfg is None else init_cfg)
        arch = self._resolve_arch(arch, set(ARCH_KEYS))
        dims, depths, self.num_heads = arch["embed_dims"], arch["depths"], arch["num_heads"]
        check_int(embed_dims=dims)
        check_ints(depths=depths, num_heads=self.num_heads)
        check_per_stage(depths=depths, num_heads=self.num_heads)
        self._mixers = mixers_of_blocks(
            dict(type="WindowAttention") if mixers is None else mixers, depths
        )
        check_choice(tuple(BLOCKS), block=block)
        patch_size = as_side("patch_size", patch_size)
        map_size = pretrain_map_size(pretrain_img_size, patch_size)
        check_flag(patch_norm=patch_norm, use_abs_pos_embed=use_abs_pos_embed)
        check_rate(drop_rate=drop_rate)
        self._block_type = BLOCKS[block]
        self._block: dict[str, Any] = dict(
            mlp_ratio=mlp_ratio, drop_rate=drop_rate, with_cp=with_cp
        )

        self.patch_embed = PatchEmbed(in_channels, dims, patch_size, patch_norm)
        self.absolute_pos_embed = position_embedding(dims, map_size) if use_abs_pos_embed else None
        self.drop_after_pos = nn.Dropout(drop_rate)
        num_features = [dims * 2**i for i in range(len(depths))]
        self._build_stages(
            num_features, depths, drop_path_rate, out_indices, frozen_stages, norm_eval
        )

    def _make_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        dims, heads = self.num_features[stage], self.num_heads[stage]
        attn = build_mixer(self._mixers[stage][index], dims, heads, index)
        return self._block_type(dims, attn, drop_path_rate=drop_path_rate, **self._block)

    def _make_downsample(self, stage: int, drop_path_rate: float) -> nn.Module:
        return PatchMerging(self.num_features[stage], self.num_features[stage + 1])

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = add_position(x, self.absolute_pos_embed)
        return self.drop_after_pos(x)


def mixers_of_blocks(
    mixers: Mixer | Sequence[Mixer | Sequence[Mixer]], depths: Sequence[int]
) -> list[list[Mixer]]:
    """Give each block its mixer.

    Args:
        mixers: argument of :class:`LocalSwin`.
        depths: number of blocks of each stage.

    Returns:
        For each stage, one config per block.

    Raises:
        ValueError: the number of stages or blocks differs, or a mixer is unknown.
        TypeError: an entry is no dict.
    """

    def spread(name: str, entry: Any, number: int, parts: str) -> list[Any]:
        if not is_sequence(entry):
            return [entry] * number
        if len(entry) != number:
            raise ValueError(
                f"{name} must have one entry for each of the {number} {parts}, got {len(entry)}"
            )
        return list(entry)

    stages = spread("mixers", mixers, len(depths), "stages of arch")
    blocks = [
        spread(f"mixers[{i}]", entry, depth, "blocks of this stage")
        for i, (entry, depth) in enumerate(zip(stages, depths, strict=True))
    ]
    for cfg in (cfg for stage in blocks for cfg in stage):
        find_mixer(cfg)
    return blocks

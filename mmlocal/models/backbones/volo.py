"""VOLO: a vision transformer whose first stage attends by outlook attention.

Source:
    VOLO: Vision Outlooker for Visual Recognition, Yuan et al. 2021,
    https://arxiv.org/abs/2106.13112; official code sail-sg/volo (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers import (
    ClassAttentionBlock,
    ConvStem,
    GlobalAttention,
    TransformerBlock,
    build_mixer,
    exchange_box,
)
from mmlocal.layers.checks import check_flag, check_int, check_ints, check_rate
from mmlocal.layers.mix_token import check_box
from mmlocal.models.backbones.base import (
    TRUNC_NORMAL,
    LocalBackbone,
    as_out_indices,
    check_per_stage,
)
from mmlocal.models.backbones.position import (
    add_position,
    position_embedding,
    pretrain_map_size,
)
from mmlocal.registry import MODELS

# Width of a token of the last map, in pixels.
_LAST_PATCH = 2 * ConvStem.patch_size
# Class-attention blocks of all published models.
_CLASS_BLOCKS = 2


class Downsample(nn.Module):
    """Convolution 2x2 of stride 2, then a position embedding and dropout.

    If a side is odd, the layer first adds one row or column of zeros at the bottom or right. It
    resizes the position embedding to the map.

    Args:
        in_dims: channels in.
        out_dims: channels out.
        map_size: height and width of the stored position embedding, in tokens.
        drop_rate: dropout at the end.
    """

    def __init__(
        self, in_dims: int, out_dims: int, map_size: tuple[int, int], drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dims, out_dims, 2, stride=2)
        self.pos_embed = position_embedding(out_dims, map_size)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, in_dims)`` to ``(B, ceil(H / 2), ceil(W / 2), out_dims)``."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # Otherwise, every LayerNorm of the later stages would copy the map.
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
        return self.drop(add_position(x, self.pos_embed))


@MODELS.register_module()
class VOLO(LocalBackbone):
    """VOLO backbone for classification and dense prediction.

    The first stage has :class:`~mmlocal.layers.OutlookAttention` on a map of one token per 8x8
    pixels. A convolution of stride 2 and a position embedding follow. The other stages have global
    attention on one map, and nothing lies between them. For a classifier, a class token then reads
    the last map in two class-attention blocks::

        VOLO("d1", with_cls_token=True, out_indices=(3,))

    Images may have any size of at least 8x8 pixels. The backbone pads the image with zeros to whole
    patches, pads an odd map before the convolution of stride 2, and resizes the position embedding
    to the map. The official code cuts off what we pad, so the two agree on multiples of 16 pixels.
    The output of the first stage has ``embed_dims`` channels and height ``ceil(H / 8)``. All other
    outputs have ``2 * embed_dims`` channels and height ``ceil(ceil(H / 8) / 2)``.

    Args:
        arch: ``'d1'`` to ``'d5'`` or a dict with ``embed_dims`` (channels of the first stage, twice
            as many in the others), ``depths`` and ``num_heads`` (one number per stage). The dict
            may also have ``mlp_ratio`` (hidden channels of an MLP, divided by its channels; 3 by
            default) and ``stem_dims`` (channels inside the stem; 64 by default).
        in_channels: channels of the image.
        pretrain_img_size: image size in pixels, one number or height and width. It decides the size
            in which the backbone stores the position embedding. Keep it when you fine-tune on
            another size.
        mixer: mixer of the first stage, a config of :func:`~mmlocal.layers.build_mixer`. Its rates
            are arguments of the mixer. ``None`` for ``dict(type='OutlookAttention')`` with
            ``attn_drop_rate`` and ``drop_rate``.
        with_cls_token: whether the last output is a pair of the map and a class token. This needs
            the last stage in ``out_indices``.
        drop_rate: dropout after the position embedding, in the MLPs and after attention.
        attn_drop_rate: dropout on attention maps.
        drop_path_rate: rate of stochastic depth of the last block. The rates rise linearly over all
            blocks, from 0 to it. The first stage and the class-attention blocks never drop a
            branch, as in the official code.
        out_indices: stages to return, each through its own LayerNorm. Stages after the last one
            returned are not built, so that no parameter lacks a gradient.
        frozen_stages: -1 for none; ``n`` freezes the stem and the first ``n`` stages with their
            output norms, and the position embedding with the first stage. The class token and its
            blocks never freeze.
        norm_eval: whether the batch norms of the stem stay in eval mode.
        with_cp: whether to recompute activations of the blocks in the backward pass to save memory.
        init_cfg: MMEngine's config of the initialisation; ``None`` for a truncated normal of 0.02
            in linear layers and PyTorch's default in convolutions. ``Pretrained`` raises if the
            checkpoint does not fit.

    Raises:
        ValueError: ``arch`` is unknown or incomplete, a stage has no blocks, a count is below 1, a
            rate, ``out_indices`` or ``frozen_stages`` is out of range, ``out_indices`` repeats a
            stage or lacks the last stage that the class token needs, the heads do not divide the
            channels, or the mixer is unknown or refuses a value.
        TypeError: an argument has another type.

    Note:
        The published models are classifiers. The maps of several stages, with a norm for each, and
        the padding are our choice. ``with_cls_token=False`` with global average pooling is the
        variant without class token of the official code.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "d1": dict(
            embed_dims=192, depths=(4, 4, 8, 2), num_heads=(6, 12, 12, 12), mlp_ratio=3.0,
            stem_dims=64,
        ),
        "d2": dict(
            embed_dims=256, depths=(6, 4, 10, 4), num_heads=(8, 16, 16, 16), mlp_ratio=3.0,
            stem_dims=64,
        ),
        "d3": dict(
            embed_dims=256, depths=(8, 8, 16, 4), num_heads=(8, 16, 16, 16), mlp_ratio=3.0,
            stem_dims=64,
        ),
        "d4": dict(
            embed_dims=384, depths=(8, 8, 16, 4), num_heads=(12, 16, 16, 16), mlp_ratio=3.0,
            stem_dims=64,
        ),
        "d5": dict(
            embed_dims=384, depths=(12, 12, 20, 4), num_heads=(12, 16, 16, 16), mlp_ratio=4.0,
            stem_dims=128,
        ),
    }  # fmt: skip
    _after_stages = frozenset({"cls_token", "post_blocks"})

    def __init__(
        self,
        arch: str | dict = "d1",
        in_channels: int = 3,
        pretrain_img_size: int | tuple[int, int] = 224,
        mixer: Mapping[str, Any] | None = None,
        with_cls_token: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(TRUNC_NORMAL if init_cfg is None else init_cfg)
        arch = self._resolve_arch(
            arch, {"embed_dims", "depths", "num_heads"}, dict(mlp_ratio=3.0, stem_dims=64)
        )
        dims, depths, self.num_heads = arch["embed_dims"], arch["depths"], arch["num_heads"]
        check_int(embed_dims=dims)
        check_ints(depths=depths, num_heads=self.num_heads)
        check_per_stage(depths=depths, num_heads=self.num_heads)
        check_flag(with_cls_token=with_cls_token)
        check_rate(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate)
        out_indices, last = as_out_indices(out_indices, len(depths)), len(depths) - 1
        if with_cls_token and last not in out_indices:
            raise ValueError(
                f"out_indices must have the last stage {last}, whose map the class token of "
                f"with_cls_token=True reads, got {out_indices}"
            )
        rates = dict(attn_drop_rate=attn_drop_rate, proj_drop_rate=drop_rate)
        self._mixer = dict(type="OutlookAttention", **rates) if mixer is None else mixer
        self._attention: dict[str, Any] = dict(qkv_bias=False, **rates)
        self._block: dict[str, Any] = dict(
            mlp_ratio=arch["mlp_ratio"], drop_rate=drop_rate, with_cp=with_cp
        )
        self._drop_rate = drop_rate
        self.with_cls_token = with_cls_token

        self.patch_embed = ConvStem(in_channels, dims, arch["stem_dims"])
        self._map_size = pretrain_map_size(pretrain_img_size, _LAST_PATCH)
        num_features = [dims] + [2 * dims] * last
        self._build_stages(
            num_features, depths, drop_path_rate, out_indices, frozen_stages, norm_eval
        )
        if with_cls_token:
            dims = num_features[last]
            self.cls_token = nn.Parameter(torch.empty(1, 1, dims))
            nn.init.trunc_normal_(self.cls_token, std=0.02)
            settings = dict(attn_drop_rate=attn_drop_rate, **self._block)
            self.post_blocks = nn.ModuleList(
                ClassAttentionBlock(dims, self.num_heads[last], **settings)
                for _ in range(_CLASS_BLOCKS)
            )

    def _make_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        dims, heads = self.num_features[stage], self.num_heads[stage]
        if stage == 0:
            attn, drop_path_rate = build_mixer(self._mixer, dims, heads, index), 0.0
        else:
            attn = GlobalAttention(dims, heads, **self._attention)
        return TransformerBlock(dims, attn, drop_path_rate=drop_path_rate, **self._block)

    def _make_downsample(self, stage: int, drop_path_rate: float) -> nn.Module | None:
        if stage > 0:
            return None
        dims, out_dims = self.num_features[:2]
        return Downsample(dims, out_dims, self._map_size, self._drop_rate)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the size of the last map of an image.

        Args:
            height: height of the image, in pixels.
            width: width of the image, in pixels.

        Returns:
            Height and width, in tokens.
        """
        return -(-height // _LAST_PATCH), -(-width // _LAST_PATCH)

    def forward(self, x: Tensor, mix_box: Sequence[int] | None = None) -> tuple[Any, ...]:
        """Compute the feature maps, and the class token.

        Args:
            x: ``(B, in_channels, H, W)``, any float dtype.
            mix_box: rectangle (top, left, bottom, right) of MixToken, in tokens of the last map;
                ``None`` for none. Before any block, each image gets this rectangle of the embedding
                from the reversed batch, see :func:`~mmlocal.layers.exchange_box`. The outputs
                belong to the mixed images.

        Returns:
            For each stage ``i`` of ``out_indices``, in order: ``(B, num_features[i], H_i, W_i)``.
            With the class token, the last entry is a tuple of this map and the class token
            ``(B, num_features[-1])``, both through the norm of the last stage.

        Raises:
            ValueError: ``x`` is not 4-D, has other channels or is smaller than a patch, or
                ``mix_box`` leaves the map.
            TypeError: ``x`` is not floating point, or ``mix_box`` is not four integers.
        """
        size = x.shape[2:]
        x = self._embed(x)
        if mix_box is not None:
            check_box(*self.grid_size(*size), mix_box=mix_box)
            # The last row or column of an odd map has no second half.
            limits = 2 * tuple(x.shape[1:3])
            box = [min(2 * side, limit) for side, limit in zip(mix_box, limits, strict=True)]
            x = exchange_box(x, box)
        return self._forward_stages(x)

    def _output(self, stage: int, x: Tensor) -> Any:
        featmap = super()._output(stage, x)
        if not self.with_cls_token or stage < len(self.depths) - 1:
            return featmap
        cls_token, tokens = self.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)
        for block in self.post_blocks:
            cls_token = block(cls_token, tokens)
        return featmap, getattr(self, f"norm{stage}")(cls_token)[:, 0]

"""QnA-ViT: a hierarchical transformer of local attention by learned queries.

Source:
    Learned Queries for Efficient Local Attention, Arar et al. 2022,
    https://arxiv.org/abs/2112.11435; official JAX code moabarar/qna (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers import (
    EvenWindowAttention,
    LayerNorm,
    PatchEmbed,
    QnA,
    TransformerBlock,
    check_image,
    lecun_normal_,
)
from mmlocal.layers.checks import (
    as_side,
    check_choice,
    check_flag,
    check_int,
    check_ints,
    is_sequence,
)
from mmlocal.models.backbones.base import LocalBackbone, check_per_stage
from mmlocal.registry import MODELS

STEMS = ("patch", "resnet")
SKIPS = ("conv", "avgpool")
_TINY: dict[str, Any] = dict(
    embed_dims=64,
    attn_depths=(0, 0, 4, 2),
    qna_depths=(2, 3, 2, 0),
    attn_heads=(2, 4, 8, 16),
    qna_heads=(8, 16, 32, 64),
    kernel_size=3,
)
_SMALL = _TINY | dict(attn_depths=(0, 0, 12, 2), qna_depths=(2, 3, 6, 0))
_norm = partial(LayerNorm, eps=1e-6)


def _pad_same(x: Tensor, kernel_size: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad ``(B, C, H, W)`` as JAX's ``SAME`` does: an odd pixel goes to the bottom or right."""
    pad = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        pad += [total // 2, total - total // 2]
    return F.pad(x, pad, value=value)


class ResNetStem(nn.Module):
    """Convolution 7x7 of stride 2, batch norm, GELU, max-pooling 3x3 of stride 2.

    Args:
        in_channels: channels of the image.
        embed_dims: channels out.
    """

    def __init__(self, in_channels: int, embed_dims: int) -> None:
        super().__init__()
        check_int(in_channels=in_channels, embed_dims=embed_dims)
        self.in_channels = in_channels
        self.conv = nn.Conv2d(in_channels, embed_dims, 7, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(embed_dims)
        self.act = nn.GELU("tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, ceil(H / 4), ceil(W / 4), embed_dims)``.

        Raises:
            ValueError: ``x`` is not 4-D, has other channels or is smaller than 4x4 pixels.
            TypeError: ``x`` is not floating point.
        """
        check_image(x, self.in_channels, 4)
        x = self.act(self.norm(self.conv(_pad_same(x, 7, 2))))
        x = F.max_pool2d(_pad_same(x, 3, 2, float("-inf")), 3, stride=2)
        return x.permute(0, 2, 3, 1)


class DownsampleSkip(nn.Module):
    """Skip connection of a downsampling block: a strided 1x1 convolution.

    Args:
        in_dims: channels in.
        out_dims: channels out.
        pool_size: odd width of an average pooling of stride 2 before the convolution; ``None`` for
            a convolution of stride 2 without pooling.
    """

    def __init__(self, in_dims: int, out_dims: int, pool_size: int | None = None) -> None:
        super().__init__()
        self.pool_size = pool_size
        stride = 1 if pool_size else 2
        self.conv = nn.Conv2d(in_dims, out_dims, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, in_dims)`` to ``(B, ceil(H / 2), ceil(W / 2), out_dims)``."""
        x = x.permute(0, 3, 1, 2)
        if self.pool_size:
            # The mean includes the zeros of the padding, as in the official code.
            x = F.avg_pool2d(_pad_same(x, self.pool_size, 2), self.pool_size, stride=2)
        return self.conv(x).permute(0, 2, 3, 1)


@MODELS.register_module()
class QnAViT(LocalBackbone):
    """QnA-ViT backbone for classification and dense prediction.

    Each stage has window-attention blocks, then :class:`~mmlocal.layers.QnA` blocks. A QnA block of
    stride 2 leads to the next stage. Images may have any size of at least one patch. The backbone
    pads the image with zeros to whole patches, rounds odd maps up, and cuts maps into equal windows
    as large as ``window_sizes`` allow. The official code needs maps that are multiples of the
    windows, and so images of multiples of 224 pixels. At 224 pixels, the third and fourth stage
    have one window, so they attend globally. The output of stage ``i``, counted from 0, has
    ``embed_dims * 2**i`` channels and height ``ceil(ceil(H / 4) / 2**i)``.

    Args:
        arch: ``'tiny'``, ``'tiny_7x7'``, ``'small'``, ``'base'``, or a dict with ``embed_dims``
            (channels of the first stage, doubled at each downsampling) and four sequences with one
            number per stage: ``attn_depths`` (blocks of window attention), ``qna_depths`` (blocks
            of QnA without the downsampling block), ``attn_heads`` and ``qna_heads``. The dict may
            also have ``kernel_size`` (odd width of QnA's windows, 3 by default; also as a pair of
            equal numbers).
        in_channels: channels of the image.
        window_sizes: largest width of the attention windows, in tokens, one entry per stage. An
            entry may be a pair of equal numbers. The position tables of a checkpoint with other
            windows are resized.
        num_queries: number of learned queries.
        normalize_query: whether to scale queries to unit length; one bool, or one per stage.
        mlp_ratio: hidden channels of an MLP, divided by its channels.
        stem: ``'patch'`` for a 4x4 convolution of stride 4, ``'resnet'`` for :class:`ResNetStem`.
        downsample_skip: skip connection of the downsampling attention. ``'conv'`` for a 1x1
            convolution of stride 2, ``'avgpool'`` for an average over the window and then a 1x1
            convolution.
        drop_path_rate: rate of stochastic depth of the last block. The rates of the other blocks
            rise linearly from 0 to it.
        layer_scale_init_value: initial value of one learned factor per channel and branch of each
            block; ``None`` for no such factors.
        out_indices: stages to return, before their downsampling, each through its own LayerNorm.
            Stages after the last one returned are not built, so that no parameter lacks a
            gradient.
        frozen_stages: -1 for none; ``n`` freezes the stem and the first ``n`` stages with their
            output norms.
        norm_eval: whether the batch norm of the ``'resnet'`` stem stays in eval mode.
        with_cp: whether to recompute activations of the blocks in the backward pass to save memory.
        init_cfg: MMEngine's config of the initialisation; ``None`` for the official one, LeCun
            normal. ``Pretrained`` raises if the checkpoint does not fit.

    Raises:
        ValueError: ``arch`` is unknown or incomplete, ``stem`` or ``downsample_skip`` is unknown,
            there are no blocks, a count is below 1, a sequence does not have one entry per
            stage, ``drop_path_rate``, ``out_indices`` or ``frozen_stages`` is out of range,
            ``out_indices`` repeats a stage, the heads do not divide the channels, ``kernel_size``
            is even, or a window is not a square.
        TypeError: an argument has another type.

    Note:
        The paper counts a downsampling block as a QnA block of its stage.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": _TINY,
        "tiny_7x7": _TINY | dict(kernel_size=7),
        "small": _SMALL,
        "base": _SMALL | dict(embed_dims=96, attn_heads=(3, 6, 12, 24), qna_heads=(6, 12, 24, 48)),
    }
    _downsample_is_block = True
    # The official fine-tuning resizes tables with anti-aliasing.
    _antialias = True

    def __init__(
        self,
        arch: str | dict = "tiny",
        in_channels: int = 3,
        window_sizes: Sequence[int] = (7, 7, 14, 7),
        num_queries: int = 2,
        normalize_query: bool | Sequence[bool] = True,
        mlp_ratio: float = 4.0,
        stem: str = "patch",
        downsample_skip: str = "conv",
        drop_path_rate: float = 0.05,
        layer_scale_init_value: float | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        per_stage = ("attn_depths", "qna_depths", "attn_heads", "qna_heads")
        arch = self._resolve_arch(arch, {"embed_dims", *per_stage}, dict(kernel_size=3))
        dims = arch["embed_dims"]
        kernel_size = as_side("kernel_size", arch["kernel_size"], odd=True)
        check_int(embed_dims=dims, num_queries=num_queries)
        check_ints(0, attn_depths=arch["attn_depths"], qna_depths=arch["qna_depths"])
        check_ints(attn_heads=arch["attn_heads"], qna_heads=arch["qna_heads"])
        check_per_stage(**{name: arch[name] for name in per_stage})
        self.attn_depths, self.qna_depths = arch["attn_depths"], arch["qna_depths"]
        num_stages = len(self.qna_depths)
        if isinstance(normalize_query, bool):
            normalize_query = (normalize_query,) * num_stages
        for name, values in (("window_sizes", window_sizes), ("normalize_query", normalize_query)):
            if not is_sequence(values) or len(values) != num_stages:
                raise ValueError(
                    f"{name} must have one entry for each of the {num_stages} stages of arch, "
                    f"got {values!r}"
                )
        for value in normalize_query:
            check_flag(normalize_query=value)
        check_choice(STEMS, stem=stem)
        check_choice(SKIPS, downsample_skip=downsample_skip)
        self._heads = dict(attn_heads=arch["attn_heads"], qna_heads=arch["qna_heads"])
        self._window_sizes = [as_side("window_sizes", size) for size in window_sizes]
        self._normalize_query = normalize_query
        self._qna: dict[str, Any] = dict(kernel_size=kernel_size, num_queries=num_queries)
        self._pool_size = kernel_size if downsample_skip == "avgpool" else None
        self._block: dict[str, Any] = dict(
            mlp_ratio=mlp_ratio,
            with_cp=with_cp,
            norm1=_norm,
            norm2=_norm,
            gelu="tanh",
            layer_scale_init_value=layer_scale_init_value,
        )

        if stem == "patch":
            self.patch_embed = PatchEmbed(in_channels, dims, norm=False, bias=False)
        else:
            self.patch_embed = ResNetStem(in_channels, dims)
        num_features = [dims * 2**i for i in range(num_stages)]
        depths = [sum(pair) for pair in zip(self.attn_depths, self.qna_depths, strict=True)]
        self._build_stages(
            num_features, depths, drop_path_rate, out_indices, frozen_stages, norm_eval
        )
        if len(self.stages) == 1 and not depths[0]:
            raise ValueError(
                "arch must have a block in attn_depths or qna_depths of the first stage, because "
                f"out_indices={self.out_indices} needs this stage alone, got "
                f"{self.attn_depths} and {self.qna_depths}"
            )
        self._reset_parameters()

    def _make_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        dims = self.num_features[stage]
        if index < self.attn_depths[stage]:
            attn: nn.Module = EvenWindowAttention(
                dims,
                self._num_heads("attn_heads", stage),
                self._window_sizes[stage],
                qkv_bias=False,
                proj_bias=False,
            )
        else:
            attn = self._make_qna(stage)
        return TransformerBlock(dims, attn, drop_path_rate=drop_path_rate, **self._block)

    def _make_downsample(self, stage: int, drop_path_rate: float) -> nn.Module:
        dims, out_dims = self.num_features[stage : stage + 2]
        return TransformerBlock(
            dims,
            self._make_qna(stage, factor=2),
            drop_path_rate=drop_path_rate,
            skip=DownsampleSkip(dims, out_dims, self._pool_size),
            out_dims=out_dims,
            **self._block,
        )

    def _make_qna(self, stage: int, factor: int = 1) -> QnA:
        """Make a QnA that divides the map by ``factor`` and multiplies channels and heads."""
        dims = self.num_features[stage]
        return QnA(
            dims,
            factor * self._num_heads("qna_heads", stage),
            stride=factor,
            attn_dims=factor * dims,
            normalize_query=self._normalize_query[stage],
            **self._qna,
        )

    def _num_heads(self, name: str, stage: int) -> int:
        heads, dims = self._heads[name][stage], self.num_features[stage]
        if dims % heads:
            raise ValueError(
                f"{name} must divide the channels of their stages, {dims} in stage {stage}, "
                f"got {self._heads[name]}"
            )
        return heads

    def _make_norm(self, dims: int) -> nn.Module:
        return _norm(dims)

    def _reset_parameters(self) -> None:
        """Initialise linear layers, convolutions and window tables as the official code does."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, EvenWindowAttention):
                nn.init.zeros_(module.w_msa.relative_position_bias_table)

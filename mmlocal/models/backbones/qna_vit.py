"""QnA-ViT: a hierarchical transformer of local attention by learned queries.

Source:
    Learned Queries for Efficient Local Attention, Arar et al. 2022,
    https://arxiv.org/abs/2112.11435; official JAX code moabarar/qna (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import nn

from mmlocal.layers import (
    EvenWindowAttention,
    LayerNorm,
    PatchEmbed,
    QnA,
    TransformerBlock,
    build_mixer,
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
from mmlocal.models.backbones.downsampling import (
    ConvDownsample,
    DownsampleSkip,
    NesTDownsample,
    ResNetStem,
)
from mmlocal.models.backbones.local_swin import mixers_of_blocks
from mmlocal.registry import MODELS

STEMS = ("patch", "resnet")
SKIPS = ("conv", "avgpool")
DOWNSAMPLINGS = {"qna": None, "conv": ConvDownsample, "nest": NesTDownsample}
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
        mixers: local mixers in place of the QnA layers of stride 1; ``None`` for QnA. One dict for
            all stages, or a sequence with one entry per stage. An entry is a dict, or a sequence
            with one dict for each of the stage's ``qna_depths``. A dict is a config of
            :func:`~mmlocal.layers.build_mixer`, which gives a mixer the stage's ``qna_heads``.
        mlp_ratio: hidden channels of an MLP, divided by its channels.
        stem: ``'patch'`` for a 4x4 convolution of stride 4, ``'resnet'`` for :class:`ResNetStem`.
        downsample: layer that halves the map. ``'qna'`` for a block of QnA of stride 2,
            ``'conv'`` for :class:`~mmlocal.models.backbones.downsampling.ConvDownsample`,
            ``'nest'`` for :class:`~mmlocal.models.backbones.downsampling.NesTDownsample`. The
            convolutions have no MLP behind them, and no step in the ramp of ``drop_path_rate``.
        downsample_skip: skip connection of the downsampling QnA. ``'conv'`` for a 1x1 convolution
            of stride 2, ``'avgpool'`` for an average over the window and then a 1x1 convolution.
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
        ValueError: ``arch`` is unknown or incomplete, a mixer, ``stem``, ``downsample`` or
            ``downsample_skip`` is unknown, there are no blocks, a count is below 1, a sequence does
            not have one entry per stage or block, ``drop_path_rate``, ``out_indices`` or
            ``frozen_stages`` is out of range, ``out_indices`` repeats a stage, the heads do not
            divide the channels, ``kernel_size`` is even, or a window is not a square.
        TypeError: an argument has another type.

    Note:
        The paper counts a downsampling block as a QnA block of its stage. Nothing surrounds the
        convolutions of ``downsample``. This is our choice: we know that the paper compares them
        with QnA, but not how it embeds them.
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
        mixers: Mapping[str, Any] | Sequence | None = None,
        mlp_ratio: float = 4.0,
        stem: str = "patch",
        downsample: str = "qna",
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
        check_choice(tuple(DOWNSAMPLINGS), downsample=downsample)
        self._downsample = DOWNSAMPLINGS[downsample]
        self._downsample_is_block = self._downsample is None
        self._heads = dict(attn_heads=arch["attn_heads"], qna_heads=arch["qna_heads"])
        self._window_sizes = [as_side("window_sizes", size) for size in window_sizes]
        self._qna: list[dict[str, Any]] = [
            dict(kernel_size=kernel_size, num_queries=num_queries, normalize_query=value)
            for value in normalize_query
        ]
        qna = [dict(type=QnA, **arguments) for arguments in self._qna]
        self._mixers = mixers_of_blocks(qna if mixers is None else mixers, self.qna_depths)
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
            index -= self.attn_depths[stage]
            heads = self._num_heads("qna_heads", stage)
            attn = build_mixer(self._mixers[stage][index], dims, heads, index)
        return TransformerBlock(dims, attn, drop_path_rate=drop_path_rate, **self._block)

    def _make_downsample(self, stage: int, drop_path_rate: float) -> nn.Module:
        dims, out_dims = self.num_features[stage : stage + 2]
        if self._downsample is not None:
            return self._downsample(dims, out_dims)
        heads = 2 * self._num_heads("qna_heads", stage)
        return TransformerBlock(
            dims,
            QnA(dims, heads, stride=2, attn_dims=out_dims, **self._qna[stage]),
            drop_path_rate=drop_path_rate,
            skip=DownsampleSkip(dims, out_dims, self._pool_size),
            out_dims=out_dims,
            **self._block,
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

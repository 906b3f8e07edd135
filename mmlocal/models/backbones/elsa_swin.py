"""ELSA-Swin: Swin Transformer with ELSA in place of window attention in all stages but the last.

Source:
    ELSA: Enhanced Local Self-Attention for Vision Transformer, Zhou et al. 2021,
    https://arxiv.org/abs/2112.12786; official code damo-cv/ELSA (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mmlocal.layers import ELSA, WindowAttention
from mmlocal.layers.checks import as_side, check_flag, check_int, check_ints, check_rate
from mmlocal.models.backbones.local_swin import ARCH_KEYS, LocalSwin
from mmlocal.registry import MODELS


@MODELS.register_module()
class ELSASwin(LocalSwin):
    """ELSA-Swin backbone for classification and dense prediction.

    All stages but the last attend by :class:`~mmlocal.layers.ELSA`, without a scale on ``q * k``.
    The last stage has Swin's window attention, and every second block shifts its windows. Images
    may have any size of at least one patch. The backbone pads the image with zeros to whole
    patches, pads odd maps before merging, and pads the map of the last stage to whole windows. The
    output of stage ``i`` has ``embed_dims * 2**i`` channels and height
    ``ceil(ceil(H / patch_size) / 2**i)``.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict with ``embed_dims`` (channels of the
            first stage, doubled at each merging), ``depths`` and ``num_heads`` (one number per
            stage). The dict may also have ``group_width`` (channels per group of ELSA's
            convolution, 8 by default).
        in_channels: channels of the image.
        patch_size: width of a patch in pixels; also as a pair of equal numbers.
        kernel_size: odd width of ELSA's window, in taps; also as a pair of equal numbers.
        window_size: width of the last stage's window, in tokens; also as a pair of equal numbers.
        fit_window: ``False`` for dense prediction: the window keeps its size, the map is padded
            to it and every second block shifts. ``True`` for classification: where the map is not
            larger than the window (7x7 at 224 pixels), the window takes the size of the map and
            nothing shifts. The official code has one model for each. With equal weights, their
            outputs differ.
        mlp_ratio: hidden channels of an MLP, divided by its channels.
        qkv_bias: whether the projections to q, k, v have a bias.
        qk_scale: factor of q k^T in the last stage; ``None`` for ``head_dims ** -0.5``.
        lam: exponent of the multiplicative ghost head; 0 for none. All published models have 0.
        gamma: factor of the additive ghost head; 0 for none. All published models have 1.
        drop_rate: dropout after the patch embedding and in the MLPs.
        attn_drop_rate: dropout on attention maps.
        drop_path_rate: rate of stochastic depth of the last block. The rates of the other blocks
            rise linearly from 0 to it.
        patch_norm: whether a LayerNorm follows the patch embedding.
        use_abs_pos_embed: whether to add a learned position embedding, resized to the map.
        pretrain_img_size: image size in pixels, one number or height and width. It decides the size
            in which the backbone stores the position embedding.
        out_indices: stages to return, each through its own LayerNorm. Stages after the last one
            returned are not built, so that no parameter lacks a gradient.
        frozen_stages: -1 for none; ``n`` freezes the patch embedding, the position embedding and
            the first ``n`` stages with their output norms, as mmdet's Swin does. The official code
            freezes one stage less, and never the norms.
        with_cp: whether to recompute activations of the blocks in the backward pass to save memory.
        init_cfg: MMEngine's config of the initialisation; ``None`` for a truncated normal of 0.02
            in linear layers and PyTorch's default in convolutions. ``Pretrained`` raises if the
            checkpoint does not fit.

    Raises:
        ValueError: ``arch`` is unknown or incomplete, a stage has no blocks, a count is below 1, a
            rate, ``out_indices`` or ``frozen_stages`` is out of range, ``out_indices`` repeats a
            stage, the heads do not divide the channels, ``kernel_size`` is even, or a window or
            patch is not a square.
        TypeError: an argument has another type.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), group_width=4),
        "small": dict(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), group_width=8),
        "base": dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), group_width=8),
    }

    def __init__(
        self,
        arch: str | dict = "tiny",
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = 4,
        kernel_size: int | tuple[int, int] = 7,
        window_size: int | tuple[int, int] = 7,
        fit_window: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        lam: float = 0.0,
        gamma: float = 1.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        use_abs_pos_embed: bool = False,
        pretrain_img_size: int | tuple[int, int] = 224,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        arch = self._resolve_arch(arch, set(ARCH_KEYS), dict(group_width=8))
        group_width = arch.pop("group_width")
        check_int(group_width=group_width)
        check_ints(depths=arch["depths"])
        check_flag(fit_window=fit_window)
        check_rate(drop_rate=drop_rate)
        elsa: dict[str, Any] = dict(
            type=ELSA,
            kernel_size=as_side("kernel_size", kernel_size, odd=True),
            group_width=group_width,
            qkv_bias=qkv_bias,
            qk_scale=1.0,
            lam=lam,
            gamma=gamma,
            attn_drop_rate=attn_drop_rate,
        )
        window: dict[str, Any] = dict(
            type=WindowAttention,
            window_size=as_side("window_size", window_size),
            fit_window=fit_window,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop_rate=attn_drop_rate,
            proj_drop_rate=drop_rate,
        )
        super().__init__(
            arch,
            mixers=[elsa] * (len(arch["depths"]) - 1) + [window],
            in_channels=in_channels,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            patch_norm=patch_norm,
            use_abs_pos_embed=use_abs_pos_embed,
            pretrain_img_size=pretrain_img_size,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )

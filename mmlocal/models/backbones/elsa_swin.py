"""ELSA-Swin: Swin Transformer with ELSA in place of window attention in all stages but the last.

Source:
    ELSA: Enhanced Local Self-Attention for Vision Transformer, Zhou et al. 2021,
    https://arxiv.org/abs/2112.12786; official code damo-cv/ELSA (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers import (
    ELSA,
    PatchEmbed,
    PatchMerging,
    ShiftedWindowAttention,
    TransformerBlock,
)
from mmlocal.layers.checks import (
    as_pair,
    as_side,
    check_drop_path,
    check_flag,
    check_int,
    check_ints,
    check_rate,
)
from mmlocal.models.backbones.base import (
    LocalBackbone,
    check_stages,
    freeze,
    resolve_arch,
)
from mmlocal.registry import MODELS


class ELSASwinStage(nn.Module):
    """Blocks on one resolution, then the merging that leads to the next one.

    Args:
        blocks: modules on ``(B, H, W, C)``.
        downsample: merging, or ``None`` in the last stage.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(B, H, W, C)`` to the output of the blocks and the input of the next stage."""
        x = self.blocks(x)
        return x, x if self.downsample is None else self.downsample(x)


@MODELS.register_module()
class ELSASwin(LocalBackbone):
    """ELSA-Swin backbone for classification and dense prediction.

    All blocks of all stages but the last attend by :class:`~mmlocal.layers.ELSA`, with
    ``q * k`` unscaled. The last stage is Swin's: window attention, every second block shifted.
    Images may have any size of at least one patch. The image is zero-padded to whole patches, odd
    maps are padded before merging, and the last stage is padded to whole windows.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict with ``embed_dims`` (channels of the
            first stage, doubled at each merging), ``depths`` and ``num_heads`` (one number per
            stage), and optionally ``group_width`` (channels per group of ELSA's convolution,
            default 8).
        in_channels: channels of the image.
        patch_size: width of a patch in pixels. Here and in the next two, a pair of equal numbers
            is taken too, as Swin's configs have it.
        kernel_size: odd width of ELSA's window.
        window_size: width of the last stage's window.
        fit_window: ``False`` for dense prediction: the window keeps its size, the map is padded
            to it and every second block shifts. ``True`` for classification: where the map is no
            larger than the window (at 224 pixels: 7x7), the window takes the size of the map and
            nothing shifts. The official code has one model for each; with equal weights their
            outputs differ.
        mlp_ratio: hidden channels of an MLP over its channels.
        qkv_bias: whether projections to q, k, v have a bias.
        qk_scale: factor of q k^T in the last stage; ``None`` for ``head_dims ** -0.5``.
        lam: exponent of the multiplicative ghost head; 0 for none, as in all published models.
        gamma: factor of the additive ghost head; 0 for none. All published models have 1.
        drop_rate: dropout after the patch embedding and in the MLPs.
        attn_drop_rate: dropout on attention maps.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.
        patch_norm: whether a LayerNorm follows the patch embedding.
        use_abs_pos_embed: whether to add a learned position embedding, resized to the map.
        pretrain_img_size: image size in pixels, one number or height and width, that fixes the
            position embedding's own size.
        out_indices: stages to return, each through its own LayerNorm. Stages after the last one
            returned are not built: no parameter is left without a gradient.
        frozen_stages: -1 for none; ``n`` freezes the patch embedding, the position embedding and
            the first ``n`` stages with their output norms, as mmdet's Swin does. (The official
            code freezes one stage less, and never the norms.)
        with_cp: recompute activations of the blocks in the backward pass to save memory.
        init_cfg: as in MMEngine; default: truncated normal of 0.02 for linear layers, PyTorch's
            own for convolutions. ``Pretrained`` raises if the checkpoint does not fit.

    Raises:
        ValueError: unknown or incomplete ``arch``, a stage without blocks, a count below 1, a rate,
            ``out_indices`` or ``frozen_stages`` out of range, a stage named twice, heads that do
            not divide channels, even ``kernel_size``, a window or patch that is no square.
        TypeError: an argument of another type.
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
        if init_cfg is None:
            init_cfg = [
                dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0),
                dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
            ]
        super().__init__(init_cfg=init_cfg)
        required = {"embed_dims", "depths", "num_heads"}
        arch = resolve_arch(arch, self.arch_zoo, required, dict(group_width=8))
        self.depths = arch["depths"]
        check_int(embed_dims=arch["embed_dims"], group_width=arch["group_width"])
        check_ints(depths=self.depths, num_heads=arch["num_heads"])
        if len(self.depths) != len(arch["num_heads"]):
            raise ValueError(
                "arch must give depths and num_heads for the same number of stages, got "
                f"depths={self.depths} and num_heads={arch['num_heads']}"
            )
        num_stages = len(self.depths)
        self.num_features = [arch["embed_dims"] * 2**i for i in range(num_stages)]
        patch_size = as_side("patch_size", patch_size)
        kernel_size = as_side("kernel_size", kernel_size, odd=True)
        window_size = as_side("window_size", window_size)
        pretrain_img_size = as_pair("pretrain_img_size", pretrain_img_size)
        if min(pretrain_img_size) < patch_size:
            raise ValueError(
                f"pretrain_img_size must be at least patch_size={patch_size}, got "
                f"{pretrain_img_size}"
            )
        check_flag(fit_window=fit_window, patch_norm=patch_norm)
        check_flag(use_abs_pos_embed=use_abs_pos_embed)
        check_rate(drop_rate=drop_rate)
        check_drop_path(drop_path_rate=drop_path_rate)
        check_stages(out_indices, frozen_stages, num_stages)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages

        self.patch_embed = PatchEmbed(in_channels, arch["embed_dims"], patch_size, patch_norm)
        self.absolute_pos_embed = None
        if use_abs_pos_embed:
            size = [side // patch_size for side in pretrain_img_size]
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, arch["embed_dims"], *size))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.drop_after_pos = nn.Dropout(drop_rate)

        num_blocks = sum(self.depths)
        drop_path_rates = [drop_path_rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        self.stages = nn.ModuleList()
        num_built = max(self.out_indices) + 1
        for i in range(num_built):
            dims, heads = self.num_features[i], arch["num_heads"][i]
            last = i == num_stages - 1
            blocks = []
            for j in range(self.depths[i]):
                if last:
                    attn = ShiftedWindowAttention(
                        dims,
                        heads,
                        window_size,
                        shift=j % 2 == 1,
                        fit_window=fit_window,
                        qkv_bias=qkv_bias,
                        qk_scale=qk_scale,
                        attn_drop_rate=attn_drop_rate,
                        proj_drop_rate=drop_rate,
                    )
                else:
                    attn = ELSA(
                        dims,
                        heads,
                        kernel_size,
                        group_width=arch["group_width"],
                        qkv_bias=qkv_bias,
                        qk_scale=1.0,
                        lam=lam,
                        gamma=gamma,
                        attn_drop_rate=attn_drop_rate,
                    )
                rate = drop_path_rates.pop(0)
                blocks.append(TransformerBlock(dims, attn, mlp_ratio, drop_rate, rate, with_cp))
            downsample = None if i == num_built - 1 else PatchMerging(dims, 2 * dims)
            self.stages.append(ELSASwinStage(blocks, downsample))
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(self.num_features[i]))
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: ``(B, in_channels, H, W)``, any float dtype.

        Returns:
            One ``(B, C_i, H_i, W_i)`` per stage ``i`` of ``out_indices``, with
            ``C_i = embed_dims * 2**i`` and ``H_i = ceil(ceil(H / patch_size) / 2**i)``.

        Raises:
            ValueError: ``x`` is not 4-D, has other channels or is smaller than a patch.
            TypeError: ``x`` is not floating point.
        """
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self._resized_pos_embed(*x.shape[1:3])
        x = self.drop_after_pos(x)
        outs = []
        for i, stage in enumerate(self.stages):
            out, x = stage(x)
            if i in self.out_indices:
                outs.append(getattr(self, f"norm{i}")(out).permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def _resized_pos_embed(self, height: int, width: int) -> Tensor:
        embed = self.absolute_pos_embed
        if embed.shape[2:] != (height, width):
            embed = F.interpolate(embed, (height, width), mode="bicubic", align_corners=False)
        return embed.permute(0, 2, 3, 1)

    def train(self, mode: bool = True) -> ELSASwin:
        """As in ``nn.Module``, but frozen parts stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        freeze(self.patch_embed)
        self.drop_after_pos.eval()
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad = False
        for i, stage in enumerate(self.stages[: self.frozen_stages]):
            freeze(stage)
            if i in self.out_indices:
                freeze(getattr(self, f"norm{i}"))

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning-rate decay.

        Args:
            param_name: name of the parameter in the whole model.
            prefix: name of this backbone in the whole model, with its dot.

        Returns:
            The parameter's layer (0 for embeddings, then one per block; a merging belongs to the
            block before it) and the number of layers. Whatever is not of the backbone's trunk is
            in the last layer.
        """
        num_layers = sum(self.depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        name = param_name[len(prefix) :]
        if name.startswith(("patch_embed.", "absolute_pos_embed")):
            return 0, num_layers
        if name.startswith("stages."):
            _, stage, kind, block, *_ = name.split(".")
            if kind == "downsample":
                return sum(self.depths[: int(stage) + 1]), num_layers
            return sum(self.depths[: int(stage)]) + int(block) + 1, num_layers
        return num_layers - 1, num_layers

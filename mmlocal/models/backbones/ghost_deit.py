"""DeiT without class token, its attention maps doubled by ELSA's ghost head.

Source:
    ELSA: Enhanced Local Self-Attention for Vision Transformer, Zhou et al. 2021, appendix C,
    https://arxiv.org/abs/2112.12786; Training data-efficient image transformers & distillation
    through attention, Touvron et al. 2021, https://arxiv.org/abs/2012.12877.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers import GhostAttention, PatchEmbed, TransformerBlock
from mmlocal.layers.checks import as_pair, as_side, check_drop_path, check_int, check_rate
from mmlocal.models.backbones.base import (
    LocalBackbone,
    check_stages,
    freeze,
    resolve_arch,
)
from mmlocal.registry import MODELS


@MODELS.register_module()
class GhostDeiT(LocalBackbone):
    """Plain vision transformer with :class:`~mmlocal.layers.GhostAttention`.

    There is no class token: a classifier pools the last map. Images may have any size of at least
    one patch. The image is zero-padded to whole patches, and the position embedding and ghost heads
    are resized to the map. The article publishes a gain of 3.7 % top-1 over DeiT-Ti on ImageNet-1k,
    and no code.

    Args:
        arch: ``'tiny'`` (192 channels, 12 layers, 3 heads) or a dict with ``embed_dims``,
            ``num_layers`` and ``num_heads``.
        in_channels: channels of the image.
        patch_size: width of a patch in pixels; also as a pair of equal numbers.
        pretrain_img_size: image size in pixels, one number or height and width, that fixes the size
            in which the position embedding and the ghost heads are kept. Leave it as it is to
            fine-tune on other sizes.
        mlp_ratio: hidden channels of an MLP over its channels.
        qkv_bias: whether projections to q, k, v have a bias.
        qk_scale: factor of q k^T; ``None`` for ``head_dims ** -0.5``.
        ghost_ratio: attention maps made of each head's map.
        lam: exponent of the multiplicative ghost head; 0 for none.
        gamma: factor of the additive ghost head; 0 for none.
        drop_rate: dropout after the position embedding, in the MLPs and after attention.
        attn_drop_rate: dropout on attention maps.
        drop_path_rate: stochastic depth of the last layer; rises linearly from 0.
        out_indices: layers to return, counted from 0, or from the last one if negative; each
            through its own LayerNorm. Layers after the last one returned are not built: no
            parameter is left without a gradient.
        frozen_stages: -1 for none; ``n`` freezes the patch and position embeddings and the first
            ``n`` layers with their output norms.
        with_cp: recompute activations of the layers in the backward pass to save memory.
        init_cfg: as in MMEngine; default: truncated normal of 0.02 for linear layers, PyTorch's
            own for the patch embedding. ``Pretrained`` raises if the checkpoint does not fit.

    Raises:
        ValueError: unknown or incomplete ``arch``, a count below 1, a rate, ``out_indices`` or
            ``frozen_stages`` out of range, a layer named twice, heads that do not divide channels,
            a patch that is no square.
        TypeError: an argument of another type.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=192, num_layers=12, num_heads=3),
    }

    def __init__(
        self,
        arch: str | dict = "tiny",
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = 16,
        pretrain_img_size: int | tuple[int, int] = 224,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        ghost_ratio: int = 2,
        lam: float = 1.0,
        gamma: float = 1.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (-1,),
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
        arch = resolve_arch(arch, self.arch_zoo, {"embed_dims", "num_layers", "num_heads"})
        self.embed_dims, self.num_layers = arch["embed_dims"], arch["num_layers"]
        check_int(num_layers=self.num_layers)
        patch_size = as_side("patch_size", patch_size)
        pretrain_img_size = as_pair("pretrain_img_size", pretrain_img_size)
        if min(pretrain_img_size) < patch_size:
            raise ValueError(
                f"pretrain_img_size must be at least patch_size={patch_size}, got "
                f"{pretrain_img_size}"
            )
        check_rate(drop_rate=drop_rate)
        check_drop_path(drop_path_rate=drop_path_rate)
        check_stages(out_indices, frozen_stages, self.num_layers, negative=True)
        self.out_indices = tuple(sorted(i % self.num_layers for i in out_indices))
        self.frozen_stages = frozen_stages

        size = tuple(side // patch_size for side in pretrain_img_size)
        self.patch_embed = PatchEmbed(in_channels, self.embed_dims, patch_size, norm=False)
        self.absolute_pos_embed = nn.Parameter(torch.empty(1, self.embed_dims, *size))
        nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.drop_after_pos = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            attn = GhostAttention(
                self.embed_dims,
                arch["num_heads"],
                size,
                ghost_ratio=ghost_ratio,
                lam=lam,
                gamma=gamma,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop_rate=attn_drop_rate,
                proj_drop_rate=drop_rate,
            )
            rate = drop_path_rate * i / max(self.num_layers - 1, 1)
            self.layers.append(
                TransformerBlock(self.embed_dims, attn, mlp_ratio, drop_rate, rate, with_cp)
            )
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(self.embed_dims))
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: ``(B, in_channels, H, W)``, any float dtype.

        Returns:
            One ``(B, embed_dims, ceil(H / patch_size), ceil(W / patch_size))`` per layer of
            ``out_indices``, in the order of the layers.

        Raises:
            ValueError: ``x`` is not 4-D, has other channels or is smaller than a patch.
            TypeError: ``x`` is not floating point.
        """
        x = self.patch_embed(x)
        embed = self.absolute_pos_embed
        if embed.shape[2:] != x.shape[1:3]:
            embed = F.interpolate(embed, x.shape[1:3], mode="bicubic", align_corners=False)
        x = self.drop_after_pos(x + embed.permute(0, 2, 3, 1))
        outs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.out_indices:
                outs.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    def train(self, mode: bool = True) -> GhostDeiT:
        """As in ``nn.Module``, but frozen parts stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        freeze(self.patch_embed)
        self.drop_after_pos.eval()
        self.absolute_pos_embed.requires_grad = False
        for i, layer in enumerate(self.layers[: self.frozen_stages]):
            freeze(layer)
            if i in self.out_indices:
                freeze(getattr(self, f"norm{i}"))

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning-rate decay.

        Args:
            param_name: name of the parameter in the whole model.
            prefix: name of this backbone in the whole model, with its dot.

        Returns:
            The parameter's layer (0 for embeddings, then one per transformer layer) and the number
            of layers. Whatever is not of the backbone's trunk is in the last layer.
        """
        num_layers = self.num_layers + 2
        if param_name.startswith(prefix):
            name = param_name[len(prefix) :]
            if name.startswith(("patch_embed.", "absolute_pos_embed")):
                return 0, num_layers
            if name.startswith("layers."):
                return int(name.split(".")[1]) + 1, num_layers
        return num_layers - 1, num_layers

"""DWNet: Swin's frame with depth-wise convolutions, static or dynamic, and batch normalization.

Source:
    On the Connection between Local Attention and Dynamic Depth-wise Convolution, Han et al. 2022,
    https://arxiv.org/abs/2106.04263; official code Atten4Vis/DemystifyLocalViT (MIT).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from mmlocal.layers import (
    DepthwiseConv,
    DWNetBlock,
    DynamicDepthwiseConv,
    InhomogeneousDepthwiseConv,
)
from mmlocal.layers.batch_norm import BATCH_NORMS, batch_norm
from mmlocal.layers.checks import as_side, check_choice, check_flag, check_int, check_ints, is_int
from mmlocal.models.backbones.local_swin import LocalSwin
from mmlocal.registry import MODELS

# Spatial operators by name, and a parameter that only this operator has.
_SPATIAL: dict[str, tuple[type[nn.Module], str]] = {
    "static": (DepthwiseConv, "conv.weight"),
    "dynamic": (DynamicDepthwiseConv, "bias"),
    "inhomogeneous": (InhomogeneousDepthwiseConv, "predictor.reduce.bias"),
}


@MODELS.register_module()
class DWNet(LocalSwin):
    """DWNet backbone for classification and dense prediction.

    Each block is a :class:`~mmlocal.layers.DWNetBlock`. Patch embedding and merging are Swin's,
    with their LayerNorms. Images may have any size of at least one patch. The output of stage ``i``
    has ``embed_dims * 2**i`` channels and height ``ceil(ceil(H / patch_size) / 2**i)``.

    Args:
        arch: ``'tiny'``, ``'base'``, or a dict with ``embed_dims`` (channels of the first stage,
            doubled at each merging) and ``depths`` (one number per stage).
        spatial: the operator of all blocks. ``'static'``: a depth-wise convolution.
            ``'dynamic'``: the network predicts its kernels for each image. ``'inhomogeneous'``: it
            predicts them for each image, position and group of channels.
        num_heads: groups of channels of ``'inhomogeneous'``, one number for all stages or one per
            stage. The other operators have no groups.
        in_channels: channels of the image.
        patch_size: width of a patch in pixels; also as a pair of equal numbers.
        kernel_size: odd width of the kernels; also as a pair of equal numbers.
        pad_size_divisor: each block pads the map with zeros to multiples of this number, as the
            official detectors and segmentors do. 1 for no padding, as in the official classifiers;
            their maps of 56, 28, 14 and 7 positions need none. Padding changes the outputs.
        mlp_ratio: hidden channels of an MLP, divided by its channels.
        drop_rate: dropout after the patch embedding and in the MLPs.
        drop_path_rate: rate of stochastic depth of the last block. The rates of the other blocks
            rise linearly from 0 to it.
        patch_norm: whether a LayerNorm follows the patch embedding.
        use_abs_pos_embed: whether to add a learned position embedding, resized to the map.
        pretrain_img_size: image size in pixels, one number or height and width. It decides the size
            in which the backbone stores the position embedding.
        norm_cfg: all batch norms. ``type`` is ``'BN'`` or ``'SyncBN'``, and ``eps``, ``momentum``
            and ``requires_grad`` are optional. In a config with ``sync_bn='torch'``, distributed
            runs replace BN by SyncBN anyway.
        out_norm: norm of each output, ``'BN'`` for dense prediction, ``'LN'`` for classification.
        out_indices: stages to return, each through its own norm. Stages after the last one returned
            are not built, so that no parameter lacks a gradient.
        frozen_stages: -1 for none; ``n`` freezes the patch embedding, the position embedding and
            the first ``n`` stages with their output norms, as mmdet's Swin does. The official code
            freezes one stage less, and never the output norms.
        norm_eval: whether batch norms stay in eval mode.
        with_cp: whether to recompute activations of the blocks in the backward pass to save memory.
            The running statistics of batch norms count each batch once.
        init_cfg: MMEngine's config of the initialisation; ``None`` for a truncated normal of 0.02
            in linear layers and PyTorch's default in convolutions. ``Pretrained`` raises if the
            checkpoint does not fit.

    Raises:
        ValueError: ``arch``, ``spatial``, ``out_norm`` or a key of ``norm_cfg`` is unknown, a stage
            has no blocks, a count is below 1, a rate, ``out_indices`` or ``frozen_stages`` is out
            of range, ``out_indices`` repeats a stage, the groups do not divide the channels,
            ``kernel_size`` is even, or a patch is not a square.
        TypeError: an argument has another type.

    Note:
        Every way of loading refuses a checkpoint of another operator. As in the official code,
        batch norms of outputs ignore the LayerNorm that a classification checkpoint has there.

        Training with ``'dynamic'`` needs 2 images per process, SyncBN, or ``norm_eval``, because
        the batch norm of its predictor sees one value per image.

        The newest official classification code builds the static network if it is asked for the
        dynamic one. This is the network of the paper and of the published checkpoints.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": dict(embed_dims=96, depths=(2, 2, 6, 2)),
        "base": dict(embed_dims=128, depths=(2, 2, 18, 2)),
    }

    def __init__(
        self,
        arch: str | dict = "tiny",
        spatial: str = "static",
        num_heads: int | Sequence[int] = 32,
        in_channels: int = 3,
        patch_size: int | tuple[int, int] = 4,
        kernel_size: int | tuple[int, int] = 7,
        pad_size_divisor: int = 7,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        patch_norm: bool = True,
        use_abs_pos_embed: bool = False,
        pretrain_img_size: int | tuple[int, int] = 224,
        norm_cfg: Mapping[str, Any] | None = None,
        out_norm: str = "BN",
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        arch = self._resolve_arch(arch, {"embed_dims", "depths"})
        check_ints(depths=arch["depths"])
        check_choice(tuple(_SPATIAL), spatial=spatial)
        check_choice(("BN", "LN"), out_norm=out_norm)
        check_int(pad_size_divisor=pad_size_divisor)
        heads = (num_heads,) * len(arch["depths"]) if is_int(num_heads) else num_heads
        # The blocks and norms that the next call makes need these.
        self.pad_size_divisor = pad_size_divisor
        self.out_norm = out_norm
        super().__init__(
            dict(arch, num_heads=heads),
            mixers=dict(
                type=_SPATIAL[spatial][0],
                kernel_size=as_side("kernel_size", kernel_size, odd=True),
            ),
            block="dwnet",
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
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.spatial = spatial
        self._configure_norms(dict(type="BN") if norm_cfg is None else norm_cfg)
        self.register_load_state_dict_pre_hook(_skip_layer_norms)

    def _make_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        block = cast(DWNetBlock, super()._make_block(stage, index, drop_path_rate))
        block.pad_size_divisor = self.pad_size_divisor
        return block

    def _make_norm(self, dims: int) -> nn.Module:
        return nn.LayerNorm(dims) if self.out_norm == "LN" else nn.BatchNorm2d(dims)

    def _output(self, stage: int, x: Tensor) -> Any:
        if self.out_norm == "LN":
            return super()._output(stage, x)
        return batch_norm(getattr(self, f"norm{stage}"), x.permute(0, 3, 1, 2)).contiguous()

    def _configure_norms(self, norm_cfg: Mapping[str, Any]) -> None:
        """Apply ``norm_cfg`` to all batch norms, also to those inside the operators."""
        known = {"type", "eps", "momentum", "requires_grad"}
        if not isinstance(norm_cfg, Mapping):
            raise TypeError(f"norm_cfg must be a dict, got {norm_cfg!r}")
        if unknown := sorted(set(norm_cfg) - known):
            raise ValueError(f"norm_cfg may have {sorted(known)}, got {unknown}")
        check_choice(("BN", "SyncBN"), **{"type of norm_cfg": norm_cfg.get("type")})
        requires_grad = norm_cfg.get("requires_grad", True)
        check_flag(requires_grad=requires_grad)
        for norm in self.modules():
            if isinstance(norm, BATCH_NORMS):
                norm.eps = norm_cfg.get("eps", norm.eps)
                norm.momentum = norm_cfg.get("momentum", norm.momentum)
                if not requires_grad:
                    norm.requires_grad_(False)
        if norm_cfg["type"] == "SyncBN":
            for name, child in list(self.named_children()):
                self.add_module(name, nn.SyncBatchNorm.convert_sync_batchnorm(child))

    def check_names(self, names: Collection[str]) -> None:
        """Refuse a checkpoint of another operator.

        Args:
            names: names in the checkpoint, without a prefix.

        Raises:
            ValueError: the first block of the checkpoint has another operator.
        """
        operator = "stages.0.blocks.0.attn."
        found = [kind for kind, (_, name) in _SPATIAL.items() if operator + name in names]
        if found and found != [self.spatial]:
            raise ValueError(
                f"the checkpoint is of a DWNet with spatial={found[0]!r}, but this one has "
                f"spatial={self.spatial!r}"
            )


def _skip_layer_norms(
    module: DWNet, state_dict: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    """Take the LayerNorm of a classification model out of a state dict, if a batch norm is there.

    Both have the same names and shapes.
    """
    for i in module.out_indices if module.out_norm == "BN" else ():
        norm = f"{prefix}norm{i}."
        if norm + "running_mean" not in state_dict:
            for name in ("weight", "bias"):
                state_dict.pop(norm + name, None)

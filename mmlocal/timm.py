"""Our backbones as models of timm. Importing this module registers them.

After that, timm makes them as any other model::

    import timm
    import mmlocal.timm

    timm.list_models("*elsa*")
    model = timm.create_model("elsa_swin_tiny", num_classes=10)
    maps = timm.create_model("qna_vit_tiny", features_only=True, out_indices=(1, 2, 3))

A name is the file of the backbone and the name of its ``arch``. :func:`register` adds a backbone of
your own. VOLO is missing, because timm has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from mmlocal.layers.checks import check_choice, check_int, check_rate
from mmlocal.models.backbones import DWNet, ELSASwin, GhostDeiT, LocalSwin, QnAViT
from mmlocal.models.backbones.base import LocalBackbone, Stage, as_out_indices

__all__ = ["LocalModel", "register"]

# Weight decay spares these parameters, as the recipes in configs/mmpretrain do. timm itself spares
# norms and biases.
_TABLES = (
    "absolute_pos_embed",
    "attn_scale_table",
    "rel_pos_table",
    "relative_position_bias_table",
)

# timm's register_model looks for this name.
default_cfgs: dict[str, Any] = {}


class _Head(nn.Module):
    """Dropout and a linear layer."""

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(x))


class LocalModel(nn.Module):
    """A backbone and a linear classifier of its pooled last map, with the methods of timm's models.

    Parameters are named ``backbone.*`` and ``head.fc.*``, as in the files that ``mmlocal convert``
    writes. Feature maps come before the output norms, as in timm's Swin Transformer.

    Args:
        backbone: a backbone that returns its last stage.
        num_classes: number of classes; 0 for no classifier.
        global_pool: ``'avg'`` for the mean over the map, ``''`` for no pooling.
        drop_rate: dropout before the classifier.

    Raises:
        ValueError: ``num_classes`` is negative, ``global_pool`` is unknown, there is a classifier
            without pooling, or ``drop_rate`` is out of range.
        TypeError: an argument has another type.
    """

    def __init__(
        self,
        backbone: LocalBackbone,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_rate(drop_rate=drop_rate)
        self.backbone = backbone
        self.in_chans = backbone.patch_embed.in_channels
        self.feature_info = _feature_info(backbone)
        self.num_features = self.head_hidden_size = backbone.num_features[-1]
        self.head = _Head(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.register_load_state_dict_pre_hook(_refuse_other_layouts)

    def get_classifier(self) -> nn.Module:
        """Return the linear layer; an identity if there is none."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: number of classes; 0 for no classifier.
            global_pool: ``'avg'`` or ``''``; ``None`` to keep the pooling.

        Raises:
            ValueError: ``num_classes`` is negative, ``global_pool`` is unknown, or there is a
                classifier without pooling.
            TypeError: ``num_classes`` is not an integer.
        """
        check_int(0, num_classes=num_classes)
        if global_pool is not None:
            check_choice(("avg", ""), global_pool=global_pool)
            self.global_pool = global_pool
        if num_classes and not self.global_pool:
            raise ValueError(
                f"global_pool must be 'avg' for a classifier of {num_classes} classes, got ''"
            )
        self.num_classes = num_classes
        self.head.fc = nn.Identity()
        if num_classes:
            like = next(self.backbone.parameters())
            fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)
            self.head.fc = fc

    def forward_features(self, x: Tensor) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to the last map ``(B, num_features, H', W')``, normalised."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last map to logits.

        Args:
            x: ``(B, num_features, H, W)``, as :meth:`forward_features` returns it.
            pre_logits: whether to leave out the classifier.

        Returns:
            ``(B, num_classes)``. Without classifier ``(B, num_features)``, and without pooling
            ``x``.
        """
        if self.global_pool:
            x = x.mean((2, 3))
        return self.head.drop(x) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute the maps of stages.

        Args:
            x: ``(B, in_chans, H, W)``.
            indices: stages to return, counted from 0 or, if negative, from the last one; a number
                ``n`` for the last ``n``; ``None`` for all.
            norm: whether the map of the last stage goes through its norm.
            stop_early: whether to leave out the stages after the last one returned.
            output_fmt: ``'NCHW'``.
            intermediates_only: whether to leave out the final map.

        Returns:
            A list with one map ``(B, C, H_i, W_i)`` per stage. Without ``intermediates_only``, a
            pair of the final map and this list.

        Raises:
            ValueError: a stage is out of range or repeated, or ``output_fmt`` is another.
        """
        check_choice(("NCHW",), output_fmt=output_fmt)
        stages = self._stages(indices)
        maps = []
        x = self.backbone._embed(x)
        for i, stage in enumerate(self.backbone.stages):
            out, x = stage(x)
            last = i == len(self.backbone.stages) - 1
            if i in stages:
                maps.append(self._map(i, out, norm and last))
            if stop_early and i == stages[-1]:
                break
        return maps if intermediates_only else (self._map(i, out, last), maps)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove all that the maps of some stages do not need.

        Args:
            indices: stages to keep, as :meth:`forward_intermediates` takes them.
            prune_norm: whether to remove the norm of the last stage.
            prune_head: whether to remove the classifier.

        Returns:
            The stages, counted from 0.

        Raises:
            ValueError: a stage is out of range or repeated.
        """
        backbone, stages = self.backbone, self._stages(indices)
        before, last = len(backbone.stages) - 1, stages[-1]
        if last < before or prune_norm:
            delattr(backbone, f"norm{before}")
            backbone.add_module(f"norm{last}", nn.Identity())
            backbone.out_indices = (last,)
        if last < before:
            del backbone.stages[last + 1 :]
            cast(Stage, backbone.stages[last]).downsample = None
            self.num_features = self.head_hidden_size = backbone.num_features[last]
        if last < before or prune_head:
            self.reset_classifier(0, "")
        return list(stages)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks recompute their activations in the backward pass."""
        for module in self.modules():
            if hasattr(module, "with_cp"):
                module.with_cp = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Names of tables and position embeddings, which weight decay spares."""
        return {name for name, _ in self.named_parameters() if name.endswith(_TABLES)}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return a function from the name of a parameter to its layer, for timm's layer decay.

        Args:
            coarse: is ignored: a layer is always a block.
        """

        def layer(name: str) -> int:
            return self.backbone.get_layer_depth(name, "backbone.")[0]

        return layer

    def _stages(self, indices: int | Sequence[int] | None) -> tuple[int, ...]:
        count = len(self.backbone.stages)
        if indices is None or isinstance(indices, int):
            indices = range(-(count if indices is None else indices), 0)
        return as_out_indices(tuple(indices), count, negative=True)

    def _map(self, stage: int, x: Tensor, norm: bool) -> Tensor:
        if norm:
            return self.backbone._output(stage, x)
        return x.permute(0, 3, 1, 2).contiguous()


def register(family: type[LocalBackbone], crop_pct: float = 0.875, **arguments: Any) -> list[str]:
    """Register each ``arch`` of a backbone with timm, as ``<file of the class>_<arch>``.

    Args:
        family: a backbone with an ``arch_zoo``, an argument ``in_channels`` and a last map that a
            classifier pools.
        crop_pct: share of the shorter side that the centre crop of a test image has.
        **arguments: arguments of the backbone in a classifier, which a user can override.

    Returns:
        The names.
    """
    names = []
    for arch in family.arch_zoo:
        name = f"{family.__module__.rpartition('.')[2]}_{arch}"
        cfg = dict(
            url="",
            num_classes=1000,
            input_size=(3, 224, 224),
            interpolation="bicubic",
            crop_pct=crop_pct,
            first_conv="backbone.patch_embed.proj",
            classifier="head.fc",
        )
        default_cfgs.update(generate_default_cfgs({name: cfg}))
        entry = _entry_point(name, partial(_build, family, arch=arch, **arguments))
        setattr(sys.modules[__name__], name, register_model(entry))
        names.append(name)
    return names


def _entry_point(name: str, build: Callable[..., LocalModel]) -> Callable[..., nn.Module]:
    """The function that timm calls for a name."""

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        features = dict(out_indices=4, feature_cls="getter")
        return build_model_with_cfg(build, name, pretrained, feature_cfg=features, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    return entry


def _build(
    family: Callable[..., LocalBackbone],
    in_chans: int = 3,
    num_classes: int = 1000,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    img_size: object = None,  # timm's scripts pass it, and our models take any size
    **arguments: Any,
) -> LocalModel:
    backbone = family(in_channels=in_chans, **arguments)
    if not any(parameter.is_meta for parameter in backbone.parameters()):
        backbone.init_weights()
    return LocalModel(backbone, num_classes, global_pool, drop_rate)


def _feature_info(backbone: LocalBackbone) -> list[dict[str, Any]]:
    """Channels and stride of each stage, as timm describes them."""
    reduction: Any = backbone.patch_embed.patch_size
    info: list[dict[str, Any]] = []
    for i, stage in enumerate(backbone.stages):
        channels = backbone.num_features[i]
        info.append(dict(num_chs=channels, reduction=reduction, module=f"backbone.stages.{i}"))
        reduction *= 1 if stage.downsample is None else 2
    return info


def _refuse_other_layouts(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    if not any(name.startswith(f"{prefix}backbone.") for name in state_dict):
        raise ValueError(
            f"the checkpoint has no tensor {prefix}backbone.*, but {', '.join([*state_dict][:3])}, "
            "...: if it is an official one, convert it with mmlocal convert"
        )


register(ELSASwin, 0.9, fit_window=True, out_indices=(3,))
register(LocalSwin, 0.9, mixers=dict(type="WindowAttention", fit_window=True), out_indices=(3,))
register(DWNet, pad_size_divisor=1, out_norm="LN", out_indices=(3,))
register(QnAViT, out_indices=(3,))
register(GhostDeiT, 0.9)

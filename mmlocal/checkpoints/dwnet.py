"""State dicts of the official DWNet code (Atten4Vis/DemystifyLocalViT) under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from torch import Tensor

from mmlocal.checkpoints.system import (
    Renamed,
    System,
    as_position_map,
    check_renamed,
    count_blocks,
    dataset_meta,
    is_behind,
    mlp_ratio_of,
    official_weights,
    register_system,
    shape_of,
    split_heads,
    square,
)

_MODEL = "DWNet"
_shape = partial(shape_of, _MODEL)

# Layers of a block: official name -> our name. The official `conv2` of a block and the `conv2` of
# its operator are two layers.
_LAYERS = {
    "attn2conv.conv0": "conv1",
    "attn2conv.bn0": "bn1",
    "attn2conv.conv": "attn",
    "attn2conv.conv.conv1": "attn.predictor.reduce",
    "attn2conv.conv.bn": "attn.predictor.bn",
    "attn2conv.conv.conv2": "attn.predictor.expand",
    "attn2conv.conv.conv1.0": "attn.predictor.reduce",
    "attn2conv.conv.conv1.1": "attn.predictor.bn",
    "attn2conv.conv.conv2.0": "attn.predictor.expand",
    "attn2conv.bn": "bn2",
    "attn2conv.conv2": "conv2",
    "attn2conv.bn2": "bn3",
    "bn": "bn_mlp",
}
_OPERATOR = "layers.{}.blocks.{}.attn2conv.conv."
# A weight that only one kind of operator has.
_SPATIAL = {
    "static": "weight",
    "dynamic": "conv1.weight",
    "inhomogeneous": "conv1.0.weight",
}
_BLOCK = re.compile(r"layers\.(\d+\.blocks\.\d+)\.(.+)\.(\w+)")
# The weights of the inhomogeneous operator show only its taps times its groups.
_KERNEL_SIZE = 7


def convert_dwnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters and buffers of an official DWNet.

    Gradients convert as parameters do.

    Args:
        state_dict: state dict of a classification model, a dense backbone, or any of their parts,
            under official names.

    Returns:
        The state dict under our names. A classification head becomes ``head.fc.*``. A position
        embedding that is stored as tokens becomes a map.

    Raises:
        ValueError: a position embedding is not a square map.
    """
    stages = [int(m[1]) for key in state_dict if (m := re.match(r"layers\.(\d+)\.", key))]
    converted: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        owner, _, name = key.rpartition(".")
        if match := _BLOCK.fullmatch(key):
            block, layer, name = match.groups()
            ours = _LAYERS.get(layer, layer)
            if ours == "attn" and f"layers.{block}.{layer}.weight" in state_dict:
                ours = "attn.conv"
            converted[f"stages.{block}.{ours}.{name}"] = tensor
        elif key == "absolute_pos_embed" and tensor.dim() == 3:
            converted[key] = as_position_map(key, tensor)
        elif owner == "norm" and stages:
            converted[f"norm{max(stages)}.{name}"] = tensor
        elif owner == "head":
            converted[f"head.fc.{name}"] = tensor
        else:
            converted[re.sub(r"^layers\.", "stages.", key)] = tensor
    return converted


def spatial_of(state_dict: Mapping[str, Tensor], depths: tuple[int, ...]) -> str:
    """Find the kind of the spatial operators by their names.

    Args:
        state_dict: tensors under official names.
        depths: number of blocks of each stage.

    Returns:
        The argument ``spatial`` of ``DWNet``.

    Raises:
        ValueError: an operator is of no known kind, or two operators are of different kinds.
    """
    found: dict[str, str] = {}
    for stage, depth in enumerate(depths):
        for index in range(depth):
            operator = _OPERATOR.format(stage, index)
            kinds = [kind for kind, name in _SPATIAL.items() if operator + name in state_dict]
            if len(kinds) != 1:
                raise ValueError(
                    f"it is not an official {_MODEL}: {operator[:-1]} must be one of "
                    f"{', '.join(_SPATIAL)}, got {' and '.join(kinds) or 'none of them'}"
                )
            found.setdefault(kinds[0], operator[:-1])
    if len(found) > 1:
        places = ", ".join(f"{kind} at {place}" for kind, place in found.items())
        raise ValueError(f"all blocks must be of one variant of {_MODEL}, got {places}")
    return next(iter(found))


def dwnet_backbone_cfg(state_dict: Mapping[str, Tensor]) -> dict:
    """Recover the arguments of ``DWNet`` from official names and shapes.

    Arguments that the weights do not show keep their defaults.

    Args:
        state_dict: state dict of a classification model, with or without head, or of a dense
            backbone, under official names.

    Returns:
        Config with ``type``. A classification model has no padding, and a LayerNorm on its output.

    Raises:
        ValueError: a parameter of every DWNet is missing or has an impossible shape.
    """
    embed_dims, in_channels, patch_size, _ = _shape(state_dict, "patch_embed.proj.weight", 4)
    depths = count_blocks(_MODEL, state_dict, "layers.{}.blocks.{}")
    last = len(depths) - 1
    spatial = spatial_of(state_dict, depths)
    mlps = [_shape(state_dict, f"layers.{i}.blocks.0.mlp.fc1.weight", 2) for i in range(last + 1)]
    classification = "norm.weight" in state_dict
    norms = [i for i in range(last + 1) if f"norm{i}.weight" in state_dict]
    if not classification and not norms:
        raise ValueError(
            f"it is not an official {_MODEL}: it has neither norm (classification) nor norm0, "
            "norm1, ..."
        )
    cfg = dict(
        type="mmlocal.DWNet",
        arch=dict(embed_dims=embed_dims, depths=depths),
        spatial=spatial,
        in_channels=in_channels,
        patch_size=patch_size,
        **_operator_cfg(state_dict, spatial, last + 1),
        mlp_ratio=mlp_ratio_of(mlps),
        patch_norm="patch_embed.norm.weight" in state_dict,
        out_indices=(last,) if classification else tuple(norms),
    )
    if classification:
        cfg.update(pad_size_divisor=1, out_norm="LN")
    if "absolute_pos_embed" in state_dict:
        shape = state_dict["absolute_pos_embed"].shape
        side = shape[-1] if len(shape) == 4 else square("absolute_pos_embed", shape[1])
        cfg.update(use_abs_pos_embed=True, pretrain_img_size=side * patch_size)
    return cfg


def _operator_cfg(state_dict: Mapping[str, Tensor], spatial: str, stages: int) -> dict:
    """Recover the arguments of the spatial operators."""
    operators = [_OPERATOR.format(i, 0) for i in range(stages)]
    if spatial == "static":
        return dict(kernel_size=_shape(state_dict, operators[0] + "weight", 4)[3])
    if spatial == "dynamic":
        name = operators[0] + "conv2.weight"
        channels = _shape(state_dict, operators[0] + "conv1.weight", 4)[1]
        return dict(kernel_size=square(name, _shape(state_dict, name, 4)[0] // channels))
    numbers = [_shape(state_dict, name + "conv2.0.weight", 4)[0] for name in operators]
    if odd := [number for number in numbers if number % _KERNEL_SIZE**2]:
        raise ValueError(
            f"inhomogeneous kernels must have {_KERNEL_SIZE}x{_KERNEL_SIZE} taps, got {odd[0]} "
            "numbers per position"
        )
    groups = tuple(number // _KERNEL_SIZE**2 for number in numbers)
    num_heads = groups[0] if len(set(groups)) == 1 else groups
    return dict(kernel_size=_KERNEL_SIZE, num_heads=num_heads)


def rename_dwnet(content: Mapping) -> Renamed:
    """Bring a checkpoint of the official code under our names.

    The checkpoint may be a classification model as the official trainer saves it, a detector of
    mmdet 2.x, a segmentor of mmseg 0.x, or the bare state dict of any of these or of a dense
    backbone. The names of the tensors show which of them it is.

    Args:
        content: the checkpoint, as :func:`~mmlocal.checkpoints.load_file` reads it.

    Returns:
        The renamed checkpoint.

    Raises:
        ValueError: the checkpoint has another architecture, or a tensor without a place.
    """
    entry = "model" if "model" in content else "state_dict"
    official, left = official_weights(content, entry)
    official, heads = split_heads(official)
    cfg = dwnet_backbone_cfg(official)
    dropped = [key for key in official if is_behind(key, max(cfg["out_indices"]))]
    for key in dropped:
        del official[key]
    backbone = convert_dwnet(official)
    check_renamed(official, backbone)
    if not heads:
        heads = {k: v for k, v in backbone.items() if k.startswith("head.")}
        backbone = {k: v for k, v in backbone.items() if k not in heads}
    untold = ["drop_rate", "drop_path_rate"]
    if "pad_size_divisor" not in cfg:
        untold.append("pad_size_divisor")
    if cfg["spatial"] == "inhomogeneous":
        untold.append("kernel_size")
    return Renamed(
        cfg,
        backbone,
        heads,
        dropped,
        left,
        meta=dataset_meta(content.get("meta")),
        untold=tuple(untold),
    )


register_system(System("dwnet", _MODEL, rename_dwnet))

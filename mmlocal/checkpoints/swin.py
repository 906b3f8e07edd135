"""State dicts of Swin Transformer under the names of ``LocalSwin``.

They come from the official code (microsoft/Swin-Transformer and its detectors and segmentors), or
from mmpretrain, mmdet and mmseg, whose names and order of channels differ.
"""

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

_MODEL = "Swin Transformer"
_shape = partial(shape_of, _MODEL)

# Parts of a name, in the official code and in the OpenMMLab libraries: their name -> our name.
_OFFICIAL = ((r"^layers\.", "stages."), (r"\.attn\.", ".attn.w_msa."))
_OPENMMLAB = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
# Buffers that depend on the window or the input size. Our models do not save them.
_BUFFER = re.compile(r".*\.(relative_position_index|attn_mask)")


def convert_swin(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of a Swin Transformer.

    More than the names differs in the OpenMMLab libraries. Their merging joins neighbours channel
    by channel and row by row. Ours and the official one join neighbours position by position and
    column by column.

    Args:
        state_dict: state dict of a backbone, under official names or OpenMMLab's.

    Returns:
        The state dict under our names.

    Raises:
        ValueError: a position embedding is not a square map.
    """
    openmmlab = "patch_embed.projection.weight" in state_dict
    stages = [int(m[1]) for key in state_dict if (m := re.match(r"(?:layers|stages)\.(\d+)", key))]
    converted: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if _BUFFER.fullmatch(key):
            continue
        for theirs, ours in _OPENMMLAB if openmmlab else _OFFICIAL:
            key = re.sub(theirs, ours, key)
        key = re.sub(r"^norm\.", f"norm{max(stages, default=0)}.", key)
        if openmmlab and ".downsample." in key:
            neighbours = tensor.unflatten(-1, (-1, 2, 2))  # channel, row, column
            tensor = neighbours.movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3)
        if key == "absolute_pos_embed" and tensor.dim() == 3:
            tensor = as_position_map(key, tensor)
        converted[key] = tensor
    return converted


def swin_backbone_cfg(state_dict: Mapping[str, Tensor]) -> dict:
    """Recover the arguments of ``LocalSwin`` from our names and shapes.

    Args:
        state_dict: result of :func:`convert_swin`.

    Returns:
        Config with ``type``. If the last stage alone has an output norm, the model is a classifier,
        and its windows shrink to small maps (``fit_window``).

    Raises:
        ValueError: a parameter of every Swin Transformer is missing or has an impossible shape.
    """
    embed_dims, in_channels, patch_size, _ = _shape(state_dict, "patch_embed.proj.weight", 4)
    depths = count_blocks(_MODEL, state_dict, "stages.{}.blocks.{}")
    first = [f"stages.{i}.blocks.0." for i in range(len(depths))]
    tables = [name + "attn.w_msa.relative_position_bias_table" for name in first]
    shapes = [_shape(state_dict, name, 2) for name in tables]
    norms = tuple(i for i in range(len(depths)) if f"norm{i}.weight" in state_dict)
    if not norms:
        raise ValueError(f"it is not a whole {_MODEL}: there is no norm of an output")
    window = dict(
        type="WindowAttention",
        fit_window=norms == (len(depths) - 1,),
        qkv_bias=first[0] + "attn.w_msa.qkv.bias" in state_dict,
    )
    sides = [(square(name, rows) + 1) // 2 for name, (rows, _) in zip(tables, shapes, strict=True)]
    mixers = [window | dict(window_size=side) for side in sides]
    cfg = dict(
        type="mmlocal.LocalSwin",
        arch=dict(
            embed_dims=embed_dims, depths=depths, num_heads=tuple(heads for _, heads in shapes)
        ),
        mixers=mixers[0] if len(set(sides)) == 1 else mixers,
        in_channels=in_channels,
        patch_size=patch_size,
        mlp_ratio=mlp_ratio_of([_shape(state_dict, f"{name}mlp.fc1.weight", 2) for name in first]),
        patch_norm="patch_embed.norm.weight" in state_dict,
        out_indices=norms,
    )
    if "absolute_pos_embed" in state_dict:
        height, width = _shape(state_dict, "absolute_pos_embed", 4)[2:]
        size = (height * patch_size, width * patch_size)
        cfg.update(use_abs_pos_embed=True, pretrain_img_size=size)
    return cfg


def rename_swin(content: Mapping) -> Renamed:
    """Bring a checkpoint of Swin Transformer under our names.

    The checkpoint may be an official classification model (``model``), a classifier of mmpretrain,
    a detector or segmentor of the official code, mmdet or mmseg, or the bare state dict of any of
    these or of a backbone. The names of the tensors show which of them it is.

    Args:
        content: the checkpoint, as :func:`~mmlocal.checkpoints.load_file` reads it.

    Returns:
        The renamed checkpoint.

    Raises:
        ValueError: the checkpoint has another architecture, or a tensor without a place.
    """
    theirs, left = official_weights(content, "model" if "model" in content else "state_dict")
    classifier = {k: v for k, v in theirs.items() if k.startswith("head.")}
    theirs, heads = split_heads({k: v for k, v in theirs.items() if k not in classifier})
    ours = convert_swin(theirs)
    cfg = swin_backbone_cfg(ours)
    dropped = [key for key in theirs if _is_unused(key, max(cfg["out_indices"]))]
    kept = {key: tensor for key, tensor in theirs.items() if key not in dropped}
    backbone = convert_swin(kept)
    check_renamed(kept, backbone)
    for key, tensor in classifier.items():
        heads[re.sub(r"^head\.(?!fc\.)", "head.fc.", key)] = tensor
    return Renamed(
        cfg,
        backbone,
        heads,
        dropped,
        left,
        meta=dataset_meta(content.get("meta")),
        # `qk_scale` and `fit_window` of the mixers leave no trace.
        untold=("mixers", "drop_rate", "drop_path_rate"),
    )


def _is_unused(key: str, last: int) -> bool:
    """Whether ``LocalSwin`` does not store a tensor: a buffer, or a layer after stage ``last``."""
    return is_behind(key, last) or _BUFFER.fullmatch(key) is not None


register_system(System("swin", _MODEL, rename_swin))

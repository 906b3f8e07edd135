"""State dicts of the official VOLO code (sail-sg/volo) and of timm under the names of ``VOLO``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from torch import Tensor

from mmlocal.checkpoints.system import (
    Renamed,
    System,
    check_renamed,
    count_blocks,
    mlp_ratio_of,
    official_weights,
    register_system,
    shape_of,
)

_MODEL = "VOLO"
_shape = partial(shape_of, _MODEL)

_POSITION = "stages.0.downsample.pos_embed"
# Our heads by official names.
_HEADS = {"head": "head.fc", "aux_head": "head.aux_fc"}
# A token of the last map has this width, in pixels.
_PATCH = 16
# Logits of one head: 9 pixels attend to 9 pixels in all published models.
_LOGITS = 3**4
# Heads of the transformer blocks in the published models, by channels and heads of the outlookers.
_TRANSFORMER_HEADS = {(192, 6): 12, (256, 8): 16, (384, 12): 16}


def convert_volo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of the official VOLO; its position embedding becomes channels-first.

    The names of timm are the same. Gradients convert as parameters do.

    Args:
        state_dict: state dict of a classification model, with or without heads, under official
            names.

    Returns:
        The state dict under our names. The heads become ``head.fc.*`` and ``head.aux_fc.*``.

    Raises:
        ValueError: there are no blocks, or the position embedding is not a map.
    """
    last = len(_depths(state_dict)) - 1
    converted = {}
    for key, tensor in state_dict.items():
        part, _, rest = key.partition(".")
        if key == "pos_embed":
            _shape(state_dict, key, 4)
            key, tensor = _POSITION, tensor.permute(0, 3, 1, 2)
        elif match := re.fullmatch(r"network\.(\d+)\.(\d+)\.(.*)", key):
            # The down-sampling between the first stage and the others has a number, too.
            stage = max(int(match[1]) - 1, 0)
            key = f"stages.{stage}.blocks.{match[2]}.{match[3]}"
        elif key.startswith("network.1.proj."):
            key = key.replace("network.1", "stages.0.downsample")
        elif part == "post_network":
            key = f"post_blocks.{rest}"
        elif part == "norm":
            key = f"norm{last}.{rest}"
        elif part in _HEADS:
            key = f"{_HEADS[part]}.{rest}"
        converted[key] = tensor
    return converted


def _depths(state_dict: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Count the blocks of each stage."""
    _shape(state_dict, "network.1.proj.weight", 4)
    # The down-sampling has the number 1 and no blocks.
    names = {**state_dict, "network.1.0.": state_dict["network.1.proj.weight"]}
    first, _, *others = count_blocks(_MODEL, names, "network.{}.{}")
    return first, *others


def volo_backbone_cfg(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict:
    """Recover the arguments of ``VOLO`` from official names and shapes.

    Args:
        state_dict: state dict of a classification model under official names.
        num_heads: heads of the transformer blocks, which no weight shows; ``None`` for the number
            of the published models.

    Returns:
        Config with ``type``.

    Raises:
        ValueError: a parameter of every VOLO is missing or has an impossible shape, or no published
            model has such outlookers and ``num_heads`` is not given.
    """
    stem_dims, in_channels, _, _ = _shape(state_dict, "patch_embed.conv.0.weight", 4)
    dims, *_ = _shape(state_dict, "patch_embed.proj.weight", 4)
    _, height, width, _ = _shape(state_dict, "pos_embed", 4)
    depths = _depths(state_dict)
    logits, _ = _shape(state_dict, "network.0.0.attn.attn.weight", 2)
    heads = logits // _LOGITS
    if logits % _LOGITS:
        raise ValueError(
            "network.0.0.attn.attn.weight must have 81 rows for each head (windows of 3x3), got "
            f"{logits} rows"
        )
    if num_heads is None:
        if (dims, heads) not in _TRANSFORMER_HEADS:
            raise ValueError(
                f"no published VOLO has {dims} channels and {heads} heads in its outlookers, and "
                "no weight shows the heads of the transformer blocks: pass their number, num_heads"
            )
        num_heads = _TRANSFORMER_HEADS[dims, heads]
    groups = [0, *range(2, len(depths) + 1)]
    mlps = [_shape(state_dict, f"network.{i}.0.mlp.fc1.weight", 2) for i in groups]
    return dict(
        type="mmlocal.VOLO",
        arch=dict(
            embed_dims=dims,
            depths=depths,
            num_heads=(heads, *[num_heads] * (len(depths) - 1)),
            mlp_ratio=mlp_ratio_of(mlps),
            stem_dims=stem_dims,
        ),
        in_channels=in_channels,
        pretrain_img_size=(_PATCH * height, _PATCH * width) if height != width else _PATCH * height,
        with_cls_token="cls_token" in state_dict,
        out_indices=(len(depths) - 1,),
    )


def rename_volo(
    content: Mapping,
    ema: bool = False,
    num_heads: int | None = None,
    img_size: int | None = None,
) -> Renamed:
    """Bring a checkpoint of the official code or of timm under our names.

    Args:
        content: the checkpoint, as :func:`~mmlocal.checkpoints.load_file` reads it: a state dict,
            or the file of timm's trainer around it.
        ema: whether to take the moving average of the weights, ``state_dict_ema``.
        num_heads: heads of the transformer blocks; ``None`` for the number of the published models.
        img_size: size of the images, in pixels, to which the position embedding is resized;
            ``None`` to keep its size.

    Returns:
        The renamed checkpoint.

    Raises:
        ValueError: the checkpoint has another architecture, no EMA weights, or a tensor without a
            place.
    """
    official, left = official_weights(content, "state_dict_ema" if ema else "state_dict")
    cfg = volo_backbone_cfg(official, num_heads)
    renamed = convert_volo(official)
    check_renamed(official, renamed)
    return Renamed(
        cfg,
        backbone={k: v for k, v in renamed.items() if not k.startswith("head.")},
        heads={k: v for k, v in renamed.items() if k.startswith("head.")},
        dropped=[],
        left=left,
        tables={} if img_size is None else dict(pretrain_img_size=img_size),
        source=dict(ema=ema),
        untold=("drop_rate", "attn_drop_rate", "drop_path_rate"),
    )


register_system(
    System(
        "volo",
        _MODEL,
        rename_volo,
        options=dict(
            ema=dict(action="store_true", help="take the averaged weights"),
            num_heads=dict(
                type=int,
                metavar="N",
                help="heads of the transformer blocks of a model that is not published",
            ),
            img_size=dict(
                type=int,
                metavar="PIXELS",
                help="resize the position embedding to images of this size",
            ),
        ),
    )
)

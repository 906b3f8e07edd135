"""State dicts of the official ELSA code (damo-cv/ELSA) under the names of ``ELSASwin``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
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

_MODEL = "ELSA-Swin"
_shape = partial(shape_of, _MODEL)

# Layers inside their owner: official name -> our name.
_LAYERS = {
    "pre_proj": "qkv",
    "post_proj": "proj",
    "attn.0": "attn_conv",
    "attn.2": "attn_proj",
}
_LAYER = re.compile(r"(?P<owner>|.*\.)(?P<layer>pre_proj|post_proj|attn\.0|attn\.2)\.(?P<name>\w+)")
# Buffers that depend on the window or the input size. Our models do not save them.
_BUFFER = re.compile(r"(|.*\.)(relative_id|attn_mask)")


def convert_elsa(
    state_dict: Mapping[str, Tensor], lam: float = 0.0, gamma: float = 1.0
) -> dict[str, Tensor]:
    """Rename and re-order the parameters of the official ELSA or ELSA-Swin.

    More than the names differs. Official window attention stores v, q, k, and a transposed bias
    table with an index of key minus query. The official ELSA layer stores two ghost heads in one
    tensor. The official classification model has one ``norm``, and stores its position embedding as
    tokens. Gradients convert as parameters do.

    Args:
        state_dict: state dict of a classification model, a dense backbone, or any of their parts,
            under official names.
        lam: exponent of the multiplicative ghost head in training.
        gamma: factor of the additive ghost head in training.

    Returns:
        The state dict under our names. A classification head becomes ``head.fc.*``.

    Raises:
        ValueError: the shape of a ghost head does not fit ``lam`` and ``gamma``, or a position
            embedding is not a square map.
    """
    stages = [int(m[1]) for key in state_dict if (m := re.match(r"layers\.(\d+)\.", key))]
    converted: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        owner, _, name = key.rpartition(".")
        owner = f"{owner}." if owner else ""
        if _BUFFER.fullmatch(key):
            continue
        if name == "ghost_head":
            for ghost, part in _split_ghost_head(key, tensor, lam, gamma).items():
                converted[owner + ghost] = part
        elif name == "rb":
            # Reversing the offsets turns key minus query into query minus key.
            table = tensor.flip(1).t().contiguous()
            converted[_window(owner) + "relative_position_bias_table"] = table
        elif match := _LAYER.fullmatch(key):
            owner, layer, name = match["owner"], match["layer"], match["name"]
            if owner + "rb" in state_dict:
                owner = _window(owner)
                if layer == "pre_proj":
                    value, query, key_ = tensor.chunk(3)
                    tensor = torch.cat((query, key_, value))
            converted[f"{owner}{_LAYERS[layer]}.{name}"] = tensor
        elif key == "absolute_pos_embed" and tensor.dim() == 3:
            converted[key] = as_position_map(key, tensor)
        elif owner == "norm." and stages:
            converted[f"norm{max(stages)}.{name}"] = tensor
        elif owner == "head.":
            converted[f"head.fc.{name}"] = tensor
        else:
            converted[key] = tensor
    return {re.sub(r"^layers\.", "stages.", key): tensor for key, tensor in converted.items()}


def _window(owner: str) -> str:
    """Our name of a window attention. In a block, it is inside the layer that shifts and pads."""
    return f"{owner}w_msa." if owner.startswith("layers.") else owner


def _split_ghost_head(key: str, tensor: Tensor, lam: float, gamma: float) -> dict[str, Tensor]:
    names = [name for name, factor in (("ghost_mul", lam), ("ghost_add", gamma)) if factor != 0]
    shape = (2, 1) if len(names) == 2 else (1,)
    if not names or tensor.dim() != len(shape) + 3 or tensor.shape[: len(shape)] != shape:
        raise ValueError(
            f"{key} of shape {tuple(tensor.shape)} does not fit lam={lam} and gamma={gamma}: "
            "pass the values that the model was trained with"
        )
    return {
        name: part.reshape(tensor.shape[-3:])
        for name, part in zip(names, tensor if len(names) == 2 else (tensor,), strict=True)
    }


def elsa_backbone_cfg(
    state_dict: Mapping[str, Tensor], lam: float | None = None, gamma: float | None = None
) -> dict:
    """Recover the arguments of ``ELSASwin`` from official names and shapes.

    Arguments that the weights do not show keep their defaults.

    Args:
        state_dict: state dict of a classification model, with or without head, or of a dense
            backbone, under official names.
        lam: exponent of the multiplicative ghost head; ``None`` for 1 if shapes show such a head,
            else 0.
        gamma: factor of the additive ghost head; ``None`` for 1 if shapes show such a head, else 0.
            Shapes do not show the kind of a single ghost head. It counts as additive, as in the
            published models, unless ``lam`` is given.

    Returns:
        Config with ``type``. ``fit_window`` is true for a classification model.

    Raises:
        ValueError: a parameter of every ELSA-Swin is missing or has an impossible shape.
    """
    embed_dims, in_channels, patch_size, _ = _shape(state_dict, "patch_embed.proj.weight", 4)
    depths = count_blocks(_MODEL, state_dict, "layers.{}.blocks.{}")
    last = len(depths) - 1
    attentions = [f"layers.{i}.blocks.0.attn." for i in range(last + 1)]
    heads, biases = _shape(state_dict, attentions[last] + "rb", 2)
    mlps = [_shape(state_dict, f"layers.{i}.blocks.0.mlp.fc1.weight", 2) for i in range(last + 1)]
    classification = "norm.weight" in state_dict
    norms = [i for i in range(last + 1) if f"norm{i}.weight" in state_dict]
    if not classification and not norms:
        raise ValueError(
            "it is not an official ELSA-Swin: it has neither norm (classification) nor norm0, "
            "norm1, ..."
        )
    arch = dict(embed_dims=embed_dims, depths=depths, num_heads=(heads,))
    cfg = dict(
        type="mmlocal.ELSASwin",
        arch=arch,
        in_channels=in_channels,
        patch_size=patch_size,
        window_size=(square(attentions[last] + "rb", biases) + 1) // 2,
        fit_window=classification,
        mlp_ratio=mlp_ratio_of(mlps),
        qkv_bias=attentions[last] + "pre_proj.bias" in state_dict,
        patch_norm="patch_embed.norm.weight" in state_dict,
        out_indices=(last,) if classification else tuple(norms),
    )
    if last > 0:  # a single stage has window attention alone
        convs = [_shape(state_dict, name + "attn.0.weight", 4) for name in attentions[:-1]]
        logits = [_shape(state_dict, name + "attn.2.weight", 4) for name in attentions[:-1]]
        _, arch["group_width"], _, kernel_size = convs[0]
        arch["num_heads"] = (*(shape[0] // kernel_size**2 for shape in logits), heads)
        cfg["kernel_size"] = kernel_size
        ghost_head = state_dict.get(attentions[0] + "ghost_head")
        cfg["lam"], cfg["gamma"] = _ghost_factors(ghost_head, lam, gamma)
    if "absolute_pos_embed" in state_dict:
        shape = state_dict["absolute_pos_embed"].shape
        side = shape[-1] if len(shape) == 4 else square("absolute_pos_embed", shape[1])
        cfg.update(use_abs_pos_embed=True, pretrain_img_size=side * patch_size)
    return cfg


def _ghost_factors(
    ghost_head: Tensor | None, lam: float | None, gamma: float | None
) -> tuple[float, float]:
    both = ghost_head is not None and ghost_head.dim() == 5
    one = ghost_head is not None and not both
    if lam is None:
        lam = 1.0 if both or (one and gamma == 0) else 0.0
    if gamma is None:
        gamma = 1.0 if both or (one and lam == 0) else 0.0
    return lam, gamma


def rename_elsa(
    content: Mapping, ema: bool = False, lam: float | None = None, gamma: float | None = None
) -> Renamed:
    """Bring a checkpoint of the official code under our names.

    The checkpoint may be a classification model as timm's trainer saves it, a detector of mmdet
    2.x, a segmentor of mmseg 0.x, or the bare state dict of any of these or of a dense backbone.
    The names of the tensors show which of them it is.

    Args:
        content: the checkpoint, as :func:`~mmlocal.checkpoints.load_file` reads it.
        ema: whether to take the moving average of the weights, ``state_dict_ema``.
        lam: exponent of the multiplicative ghost head in training; ``None`` to infer it from
            shapes.
        gamma: factor of the additive ghost head in training; ``None`` to infer it from shapes.

    Returns:
        The renamed checkpoint.

    Raises:
        ValueError: the checkpoint has another architecture, no EMA weights, or a tensor without a
            place.
    """
    official, left = official_weights(content, "state_dict_ema" if ema else "state_dict")
    official, heads = split_heads(official)
    cfg = elsa_backbone_cfg(official, lam, gamma)
    dropped = [key for key in official if _is_unused(key, max(cfg["out_indices"]))]
    for key in dropped:
        del official[key]
    backbone = convert_elsa(official, cfg.get("lam", 0.0), cfg.get("gamma", 1.0))
    check_renamed(official, backbone)
    if not heads:
        heads = {k: v for k, v in backbone.items() if k.startswith("head.")}
        backbone = {k: v for k, v in backbone.items() if k not in heads}
    return Renamed(
        cfg,
        backbone,
        heads,
        dropped,
        left,
        source=dict(ema=ema),
        meta=dataset_meta(content.get("meta")),
        untold=_untold(cfg, lam, gamma),
    )


def _is_unused(key: str, last: int) -> bool:
    """Whether ``ELSASwin`` does not store a tensor.

    It stores neither buffers that depend on the window or the input size nor, in dense backbones,
    the layers after ``last``, the last stage returned.
    """
    return is_behind(key, last) or _BUFFER.fullmatch(key) is not None


def _untold(cfg: Mapping, lam: float | None, gamma: float | None) -> tuple[str, ...]:
    """Find the arguments of ``ELSASwin`` that neither the weights nor the user stated.

    ``qk_scale`` acts in the last stage; the published models have the default. Rates change nothing
    in eval mode. Shapes show the number of ghost heads, but not ``lam`` and ``gamma``, nor the kind
    of a single ghost head.
    """
    names = ["qk_scale", "drop_rate", "attn_drop_rate", "drop_path_rate"]
    if lam is None and gamma is None and (cfg.get("lam") or cfg.get("gamma")):
        return (*names, "lam", "gamma")
    given = dict(lam=lam, gamma=gamma)
    return (*names, *(name for name in given if given[name] is None and cfg.get(name)))


register_system(
    System(
        "elsa",
        _MODEL,
        rename_elsa,
        options=dict(
            ema=dict(action="store_true", help="take the averaged weights"),
            lam=dict(
                type=float, help="exponent of the multiplicative ghost head (default: by shape)"
            ),
            gamma=dict(type=float, help="factor of the additive ghost head (default: by shape)"),
        ),
    )
)

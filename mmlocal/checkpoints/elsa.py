"""State dicts of the official ELSA code (damo-cv/ELSA) under the names of ``ELSASwin``."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from mmlocal.checkpoints.system import Renamed, System, check_renamed, shape_of, some, square

# Official name of a layer inside its owner -> ours.
_LAYERS = {
    "pre_proj": "qkv",
    "post_proj": "proj",
    "attn.0": "attn_conv",
    "attn.2": "attn_proj",
}
_LAYER = re.compile(r"(?P<owner>|.*\.)(?P<layer>pre_proj|post_proj|attn\.0|attn\.2)\.(?P<name>\w+)")
# Buffers that depend on the window or the input size: ours are not saved.
BUFFER = re.compile(r"(|.*\.)(relative_id|attn_mask)")
# Whose parts are named alike in mmdet 2.x and 3.x, and in mmseg 0.x and 1.x.
_HEAD = re.compile(r"(neck|rpn_head|roi_head|decode_head|auxiliary_head)\.")


def convert_elsa(
    state_dict: Mapping[str, Tensor], lam: float = 0.0, gamma: float = 1.0
) -> dict[str, Tensor]:
    """Rename and re-order the parameters of the official ELSA or ELSA-Swin.

    Takes the state dict of a classification model, a dense backbone, or any of their parts. What
    differs beside the names: window attention stores v, q, k and a transposed bias table indexed
    by key minus query; the two ghost heads share one tensor; the classification model has one
    ``norm`` and stores its position embedding as tokens. Gradients convert as parameters do.

    Args:
        state_dict: official names.
        lam: exponent of the multiplicative ghost head that the model was trained with.
        gamma: factor of the additive ghost head that the model was trained with.

    Returns:
        Our names; a classification head becomes ``head.fc.*``.

    Raises:
        ValueError: a ghost head or position embedding has a shape that does not fit ``lam`` and
            ``gamma``, or a square map.
    """
    stages = [int(m[1]) for key in state_dict if (m := re.match(r"layers\.(\d+)\.", key))]
    converted: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        owner, _, name = key.rpartition(".")
        owner = f"{owner}." if owner else ""
        if BUFFER.fullmatch(key):
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
            side = square(key, tensor.shape[1])
            converted[key] = tensor.transpose(1, 2).reshape(1, -1, side, side)
        elif owner == "norm." and stages:
            converted[f"norm{max(stages)}.{name}"] = tensor
        elif owner == "head.":
            converted[f"head.fc.{name}"] = tensor
        else:
            converted[key] = tensor
    return {re.sub(r"^layers\.", "stages.", key): tensor for key, tensor in converted.items()}


def _window(owner: str) -> str:
    """A block's window attention is a sub-module of the layer that shifts and pads."""
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

    Arguments that no weight tells keep their defaults: see :func:`untold_by_elsa`.

    Args:
        state_dict: official names; a classification model, with or without head, or a dense
            backbone.
        lam: exponent of the multiplicative ghost head; ``None`` for 1 if shapes show one, else 0.
        gamma: factor of the additive ghost head, likewise. A single ghost head may be either: it
            counts as additive, as published, unless ``lam`` is given.

    Returns:
        Config with ``type``, complete but for the above. ``fit_window`` is set for classification.

    Raises:
        ValueError: a parameter that every ELSA-Swin has is missing or impossible.
    """
    embed_dims, in_channels, patch_size, _ = _shape(state_dict, "patch_embed.proj.weight", 4)
    depths = _depths(state_dict)
    last = len(depths) - 1
    attentions = [f"layers.{i}.blocks.0.attn." for i in range(last + 1)]
    heads, biases = _shape(state_dict, attentions[last] + "rb", 2)
    classification = "norm.weight" in state_dict
    norms = [i for i in range(last + 1) if f"norm{i}.weight" in state_dict]
    if not classification and not norms:
        raise ValueError("it is no ELSA-Swin: neither norm (classification) nor norm0, norm1, ...")
    arch = dict(embed_dims=embed_dims, depths=depths, num_heads=(heads,))
    cfg = dict(
        type="mmlocal.ELSASwin",
        arch=arch,
        in_channels=in_channels,
        patch_size=patch_size,
        window_size=(square(attentions[last] + "rb", biases) + 1) // 2,
        fit_window=classification,
        mlp_ratio=_mlp_ratio(state_dict, len(depths)),
        qkv_bias=attentions[last] + "pre_proj.bias" in state_dict,
        patch_norm="patch_embed.norm.weight" in state_dict,
        out_indices=(last,) if classification else tuple(norms),
    )
    if last > 0:  # a single stage has window attention only
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


def unused_by_elsa(state_dict: Mapping[str, Tensor], cfg: dict) -> list[str]:
    """Official names of tensors that ``ELSASwin`` has no use for.

    Buffers that depend on the window or the input size, and, in dense backbones that do not return
    their last stage, what comes after the last stage returned.
    """
    top = max(cfg["out_indices"])

    def unused(key: str) -> bool:
        if match := re.match(r"layers\.(\d+)\.(downsample)?", key):
            stage = int(match[1])
            if stage > top or (stage == top and match[2]):
                return True
        return BUFFER.fullmatch(key) is not None

    return [key for key in state_dict if unused(key)]


def _shape(state_dict: Mapping[str, Tensor], key: str, dims: int) -> tuple[int, ...]:
    return shape_of("ELSA-Swin", state_dict, key, dims)


def _depths(state_dict: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Number of blocks of each stage."""
    found = {
        (int(match[1]), int(match[2]))
        for key in state_dict
        if (match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key))
    }
    if not found:
        raise ValueError("it is no official ELSA-Swin: there is no layers.0.blocks.0")
    blocks = Counter(stage for stage, _ in found)
    depths = tuple(blocks[stage] for stage in range(len(blocks)))
    for i, depth in enumerate(depths):
        for j in range(max(depth, 1)):
            if (i, j) not in found:
                raise ValueError(f"it is no whole ELSA-Swin: there is no layers.{i}.blocks.{j}")
    return depths


def _mlp_ratio(state_dict: Mapping[str, Tensor], num_stages: int) -> float:
    """The shortest decimal that gives the hidden channels of all stages, which are rounded down."""
    shapes = [
        _shape(state_dict, f"layers.{i}.blocks.0.mlp.fc1.weight", 2) for i in range(num_stages)
    ]
    least = max(hidden / dims for hidden, dims in shapes)
    for digits in range(16):
        ratio = math.ceil(least * 10**digits) / 10**digits
        if all(int(dims * ratio) == hidden for hidden, dims in shapes):
            return ratio
    raise ValueError(f"no mlp_ratio gives the shapes {shapes} of mlp.fc1.weight in all stages")


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


def untold_by_elsa(cfg: Mapping, lam: float | None = None, gamma: float | None = None) -> list[str]:
    """Arguments of ``ELSASwin`` that neither weights nor the user told.

    ``qk_scale`` acts in the last stage; the published models have the default. Rates change nothing
    in eval mode. Shapes show which ghost heads there are, but neither ``lam`` nor ``gamma``, and of
    a single one not its kind.

    Args:
        cfg: of :func:`elsa_backbone_cfg`.
        lam: as given to :func:`elsa_backbone_cfg`.
        gamma: as given to :func:`elsa_backbone_cfg`.
    """
    names = ["qk_scale", "drop_rate", "attn_drop_rate", "drop_path_rate"]
    if lam is None and gamma is None and (cfg.get("lam") or cfg.get("gamma")):
        return [*names, "lam", "gamma"]
    given = dict(lam=lam, gamma=gamma)
    return names + [name for name in given if given[name] is None and cfg.get(name)]


def rename_elsa(
    content: Mapping, ema: bool = False, lam: float | None = None, gamma: float | None = None
) -> Renamed:
    """Bring a checkpoint of the official code under our names.

    The layout is told by the names: a classification model as timm's trainer saves it, a detector
    of mmdet 2.x, a segmentor of mmseg 0.x, or the bare state dict of any of these or of a dense
    backbone.

    Args:
        content: what :func:`load_file` returns.
        ema: take the moving average of the weights, ``state_dict_ema``.
        lam: of :func:`elsa_backbone_cfg`.
        gamma: of :func:`elsa_backbone_cfg`.

    Raises:
        ValueError: another architecture, no EMA weights, or a tensor that has no place.
    """
    official, left = _official_state_dict(content, ema)
    heads = {}
    if any(key.startswith("backbone.") for key in official):
        heads = {k: v for k, v in official.items() if not k.startswith("backbone.")}
        if unknown := [key for key in heads if not _HEAD.match(key)]:
            raise ValueError(f"{len(unknown)} tensors belong to no known head: {some(unknown)}")
        official = {k.removeprefix("backbone."): v for k, v in official.items() if k not in heads}

    cfg = elsa_backbone_cfg(official, lam, gamma)
    dropped = unused_by_elsa(official, cfg)
    for key in dropped:
        del official[key]
    backbone = convert_elsa(official, cfg.get("lam", 0.0), cfg.get("gamma", 1.0))
    check_renamed(official, backbone)
    if not heads:
        heads = {k: v for k, v in backbone.items() if k.startswith("head.")}
        backbone = {k: v for k, v in backbone.items() if k not in heads}
    dataset_meta = _dataset_meta(content.get("meta"))
    meta = dict(dataset_meta=dataset_meta) if dataset_meta else {}
    untold = tuple(untold_by_elsa(cfg, lam, gamma))
    source = dict(ema=ema)
    return Renamed(cfg, backbone, heads, dropped, left, source=source, meta=meta, untold=untold)


def _official_state_dict(content: Mapping, ema: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under their official names, and the names of the other entries."""
    entry = "state_dict_ema" if ema else "state_dict"
    if ema and entry not in content:
        raise ValueError(f"it holds no moving average of the weights, {entry}")
    wrapped = entry in content
    state_dict = content[entry] if wrapped else content
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(f"{entry if wrapped else 'it'} holds no weights")
    if wrong := [k for k, v in state_dict.items() if not (isinstance(k, str) and _is_plain(v))]:
        raise ValueError(f"{len(wrong)} of its weights are no plain tensors: {some(wrong)}")
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return dict(state_dict), [str(key) for key in content if key != entry] if wrapped else []


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor with data; quantised, sparse and meta tensors are not."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_meta
    )


def _dataset_meta(meta: object) -> dict:
    """Class names and colours under the names of MMEngine, from where MMCV 1.x put them."""
    if not isinstance(meta, Mapping):
        return {}
    classes, palette = meta.get("CLASSES"), meta.get("PALETTE")
    found = {}
    if isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes):
        found["classes"] = tuple(classes)
        if isinstance(palette, (list, tuple)):  # of [R, G, B]
            found["palette"] = [[int(value) for value in colour] for colour in palette]
    return found


ELSA = System(
    model="ELSA-Swin",
    rename=rename_elsa,
    options={
        "ema": dict(action="store_true", help="take the averaged weights"),
        "lam": dict(
            type=float, help="exponent of the multiplicative ghost head (default: by shape)"
        ),
        "gamma": dict(type=float, help="factor of the additive ghost head (default: by shape)"),
    },
)

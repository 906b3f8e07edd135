"""State dicts of the official ELSA code (damo-cv/ELSA) under the names of ``ELSASwin``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Official name of a layer inside its owner -> ours.
_LAYERS = {
    "pre_proj": "qkv",
    "post_proj": "proj",
    "attn.0": "attn_conv",
    "attn.2": "attn_proj",
}
_LAYER = re.compile(r"(?P<owner>|.*\.)(?P<layer>pre_proj|post_proj|attn\.0|attn\.2)\.(?P<name>\w+)")
# Buffers that depend on the window or the input size: ours are not saved.
_BUFFER = re.compile(r"(|.*\.)(relative_id|attn_mask)")


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
            side = math.isqrt(tensor.shape[1])
            if side**2 != tensor.shape[1]:
                raise ValueError(f"{key} must hold a square map, got {tuple(tensor.shape)}")
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

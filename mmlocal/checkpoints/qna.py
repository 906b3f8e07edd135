"""Official names of QnA and QnA-ViT, from Flax, mapped to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_BLOCK_PARTS = {
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
    "LayerScale_0/scale_param": "gamma1",
    "LayerScale_1/scale_param": "gamma2",
    "Conv_0": "skip.conv",
    "AvgPool1x1Conv_0/Conv_0": "skip.conv",
}
_STEM_PARTS = {
    "conv_1x1": "stem.proj",
    "conv_7x7": "stem.conv",
    "BatchNorm_0": "stem.norm",
}
_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def convert_qna_layer(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of one ``FusedKQnA`` to those of :class:`mmlocal.layers.QnA`.

    Args:
        params: official names, relative to the layer, parts joined by ``/``.

    Returns:
        A state dict without ``Wk_b``, which has no effect.

    Raises:
        ValueError: a name that the official layer does not have.
    """
    out = {}
    for key, value in params.items():
        if key == "query":
            out["query"] = value
        elif key == "Wk":
            out["key.weight"] = value.t()
        elif key in ("to_v/kernel", "to_v/bias", "to_out/kernel", "to_out/bias"):
            name, leaf = key.split("/")
            out[f"{dict(to_v='value', to_out='proj')[name]}.{_LEAVES[leaf]}"] = _leaf(leaf, value)
        elif key == "rpe_bias":
            out["rel_pos_table"] = value
        elif key == "rpe_bias/kernel":  # (h, d, taps, h)
            out["pos_proj.weight"] = value.permute(2, 3, 0, 1).flatten(2).flatten(0, 1)
        elif key == "rpe_bias/bias":
            out["pos_proj.bias"] = value.flatten()
        elif key == "absolute_pos_embedding":
            out["abs_pos_embed"] = value
        elif key in ("attn_scale_weights", "attn_scale_pos"):  # (1, 1, taps, ...)
            out["attn_scale_table"] = value[0, 0].flatten(1)
        elif key != "Wk_b":
            raise ValueError(f"it is no official QnA layer: it has no parameter {key}")
    return out


def convert_window_attention(params: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Rename the parameters of one ``MultiHeadSelfAttention`` to those of our window attention.

    Args:
        params: official names, relative to the layer, parts joined by ``/``.
        num_heads: heads of the layer.

    Returns:
        A state dict of :class:`mmlocal.layers.WindowAttention`.

    Raises:
        ValueError: a name that the official layer does not have.
    """
    out = {}
    for key, value in params.items():
        name, _, leaf = key.partition("/")
        if name == "to_qkv":  # the official columns are (head, qkv, dims), ours (qkv, head, dims)
            rows = _leaf(leaf, value).unflatten(0, (num_heads, 3, -1))
            out[f"qkv.{_LEAVES[leaf]}"] = rows.transpose(0, 1).flatten(0, 2)
        elif name == "to_out":
            out[f"proj.{_LEAVES[leaf]}"] = _leaf(leaf, value)
        elif key == "RelativePositionalEmbedding_0/rpe_bias":
            out["relative_position_bias_table"] = value
        else:
            raise ValueError(f"it is no official window attention: it has no parameter {key}")
    return out


def convert_qna_vit(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of an official QnA-ViT to those of a classifier with our backbone.

    Args:
        params: official names, parts joined by ``/``: the parameters, and the batch statistics
            of a ``resnet`` stem.

    Returns:
        A state dict: the backbone without prefix, its last output norm included, ``head.fc``, and
        ``neck.qna`` for the heads that pool by attention.

    Raises:
        ValueError: a name that no official model has.
    """
    stages = [int(key[len("QnAStage_")]) for key in params if key.startswith("QnAStage_")]
    stages += [int(key[len("LSAStage_")]) for key in params if key.startswith("LSAStage_")]
    last = max(stages, default=0)
    attn_depths = {stage: 0 for stage in range(last + 1)}
    for key in params:
        if match := re.match(r"LSAStage_(\d+)/MSA_Block_(\d+)/", key):
            stage, block = map(int, match.groups())
            attn_depths[stage] = max(attn_depths[stage], block)

    out: dict[str, Tensor] = {}
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in params.items():
        top, _, rest = key.partition("/")
        block, _, inner = rest.partition("/")
        if top == "StemBlock_0" and block in _STEM_PARTS:
            out[f"{_STEM_PARTS[block]}.{_LEAVES[inner]}"] = _leaf(inner, value)
        elif top == "ClassificationHead_0" and block == "LayerNorm_0":
            out[f"norm{last}.{_LEAVES[inner]}"] = value
        elif top == "ClassificationHead_0" and block == "head_logits":
            out[f"head.fc.{_LEAVES[inner]}"] = _leaf(inner, value)
        elif top == "ClassificationHead_0" and block == "FusedKQnA_0":
            layers.setdefault(("neck.qna", "FusedKQnA_0"), {})[inner] = value
        elif match := re.fullmatch(
            r"(LSA|QnA)Stage_(\d+)/(?:MSA|QnA)_Block_(\d+)(_stride_2)?/(.+)", key
        ):
            kind, stage, number, stride, inner = match.groups()
            position = int(number) - 1 + (attn_depths[int(stage)] if kind == "QnA" else 0)
            prefix = f"downsamples.{stage}" if stride else f"stages.{stage}.{position}"
            name, _, leaf = inner.partition("/")
            if name in ("FusedKQnA_0", "MultiHeadSelfAttention_0"):
                layers.setdefault((prefix, name), {})[leaf] = value
            elif inner in _BLOCK_PARTS:
                out[f"{prefix}.{_BLOCK_PARTS[inner]}"] = value
            else:
                part, _, leaf = inner.rpartition("/")
                if part not in _BLOCK_PARTS or leaf not in _LEAVES:
                    raise ValueError(f"it is no official QnA-ViT: it has no parameter {key}")
                out[f"{prefix}.{_BLOCK_PARTS[part]}.{_LEAVES[leaf]}"] = _leaf(leaf, value)
        else:
            raise ValueError(f"it is no official QnA-ViT: it has no parameter {key}")
    for (prefix, name), layer in layers.items():
        if name == "FusedKQnA_0":
            infix = "" if prefix == "neck.qna" else ".attn"
            converted = convert_qna_layer(layer)
        else:
            infix = ".attn.w_msa"
            table = layer.get("RelativePositionalEmbedding_0/rpe_bias")
            if table is None:
                raise ValueError(f"{prefix}: window attention has no relative position table")
            converted = convert_window_attention(layer, table.shape[1])
        out |= {f"{prefix}{infix}.{key}": value for key, value in converted.items()}
    return out


def _leaf(leaf: str, value: Tensor) -> Tensor:
    """A kernel from Flax's order of axes, the last one out, to PyTorch's; all else as it is."""
    if leaf != "kernel":
        return value
    return value.t() if value.dim() == 2 else value.permute(3, 2, 0, 1)

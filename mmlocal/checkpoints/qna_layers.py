"""Flax layers of the official QnA code (moabarar/qna) under the names of our layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

WINDOW_TABLE = "RelativePositionalEmbedding_0/rpe_bias"
_QNA_LAYER = {
    "query": "query",
    "Wk": "key.weight",
    "to_v/kernel": "value.weight",
    "to_v/bias": "value.bias",
    "to_out/kernel": "proj.weight",
    "to_out/bias": "proj.bias",
    "rpe_bias": "rel_pos_table",
    "attn_scale_weights": "attn_scale_table",
    "attn_scale_pos": "attn_scale_table",
}
_WINDOW_LAYER = {
    "to_qkv/kernel": "qkv.weight",
    "to_qkv/bias": "qkv.bias",
    "to_out/kernel": "proj.weight",
    "to_out/bias": "proj.bias",
    WINDOW_TABLE: "relative_position_bias_table",
}


def convert_qna_layer(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of one ``FusedKQnA`` to the names of :class:`mmlocal.layers.QnA`.

    Args:
        params: parameters under official names, relative to the layer. The parts of a name are
            joined by ``/``.

    Returns:
        A state dict. It lacks ``Wk_b``, which has no effect.

    Raises:
        ValueError: the published layer does not have one of the names.
    """
    out = {}
    for key, value in params.items():
        if key == "Wk_b":
            continue
        if key not in _QNA_LAYER:
            raise ValueError(
                f"it is not a published QnA layer: such a layer has no parameter {key}"
            )
        if key == "Wk" or key.endswith("/kernel"):
            value = value.t()
        elif key.startswith("attn_scale"):  # (1, 1, taps, ...)
            value = value[0, 0].flatten(1)
        out[_QNA_LAYER[key]] = value
    return out


def convert_window_attention(params: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Rename the parameters of one ``MultiHeadSelfAttention`` to the names of our window attention.

    Args:
        params: parameters under official names, relative to the layer. The parts of a name are
            joined by ``/``.
        num_heads: number of heads of the layer.

    Returns:
        A state dict of :class:`mmlocal.layers.WindowMSA`.

    Raises:
        ValueError: the official layer does not have one of the names.
    """
    out = {}
    for key, value in params.items():
        if key not in _WINDOW_LAYER:
            raise ValueError(
                f"it is not an official window attention: such a layer has no parameter {key}"
            )
        if key.endswith("/kernel"):
            value = value.t()
        if key.startswith("to_qkv"):  # official rows are (head, qkv, dims), ours (qkv, head, dims)
            value = value.unflatten(0, (num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        out[_WINDOW_LAYER[key]] = value
    return out

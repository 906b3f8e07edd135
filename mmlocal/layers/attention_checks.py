"""The arguments that attention layers share."""

from __future__ import annotations

from typing import Any

from mmlocal.layers.checks import check_flag, check_int, check_number, check_rate


def check_attention(
    embed_dims: Any,
    num_heads: Any,
    qkv_bias: Any,
    qk_scale: Any,
    attn_drop_rate: Any,
    proj_drop_rate: Any,
) -> None:
    """Check the arguments of an attention layer whose heads have equal shares of the channels.

    Args:
        embed_dims: channels.
        num_heads: must divide ``embed_dims``.
        qkv_bias: whether the projection to q, k, v has a bias.
        qk_scale: factor of the logits, or ``None``.
        attn_drop_rate: dropout on the attention maps.
        proj_drop_rate: dropout on the output.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, a count is below 1, a rate is out
            of [0, 1], or ``qk_scale`` is not finite.
        TypeError: an argument has another type.
    """
    check_int(embed_dims=embed_dims, num_heads=num_heads)
    check_flag(qkv_bias=qkv_bias)
    check_rate(attn_drop_rate=attn_drop_rate, proj_drop_rate=proj_drop_rate)
    if qk_scale is not None:
        check_number(qk_scale=qk_scale)
    check_heads(embed_dims, num_heads)


def check_heads(embed_dims: int, num_heads: int) -> None:
    """Check that heads have equal shares of the channels.

    Args:
        embed_dims: channels.
        num_heads: number of heads.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``.
    """
    if embed_dims % num_heads:
        raise ValueError(
            f"num_heads must divide embed_dims={embed_dims}, got num_heads={num_heads}"
        )

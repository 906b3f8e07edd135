"""The QnA op in operators that ONNX has: no window of values is ever stored.

The attention of all windows is one map. It has ``queries * kernel_size**2`` numbers for each window
and head, and stays small beside the values, which have as many channels as a head is wide.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmlocal.ops.plain_common import (
    computation_dtype,
    entries,
    pad_windows,
    sum_of_products,
    taps_of,
)
from mmlocal.ops.qna.reference import output_size


def forward(
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None,
    tap_weight: Tensor | None,
    num_queries: int,
    kernel_size: int,
    stride: int,
    padding: int,
    sum_queries: bool,
) -> Tensor:
    """See :func:`mmlocal.ops.qna.qna_attention`."""
    heads = scores.shape[1] // num_queries
    size = [output_size(n, kernel_size, stride, padding) for n in value.shape[2:]]
    dtype = computation_dtype(value)

    def windows(x: Tensor, fill: float, groups: tuple[int, ...]) -> Iterator[Tensor]:
        steps = dict(stride=stride, padding=padding)
        padded = pad_windows(x.to(dtype), kernel_size, size, **steps, fill=fill)
        return taps_of(padded.unflatten(1, groups), kernel_size, stride=stride)

    def table(x: Tensor) -> Tensor:
        return x.to(dtype).reshape(num_queries, heads, kernel_size**2, 1, 1)

    # (B, queries, heads, taps, rows, columns)
    attn = torch.cat(list(windows(scores, float("-inf"), (num_queries, heads, 1))), dim=3)
    # The softmax ignores this shift. Added to a large score, a position would lose its digits.
    peak = attn.amax(dim=3, keepdim=True)
    attn = attn - peak.masked_fill(peak == float("-inf"), 0.0)
    if rel_pos is not None:
        attn = attn + table(rel_pos)
    attn = attn.exp()
    total = attn.sum(dim=3, keepdim=True)
    attn = attn / total.masked_fill(total == 0, 1.0)
    if tap_weight is not None:
        attn = attn * table(tap_weight)
    if sum_queries:
        attn = attn.sum(dim=1, keepdim=True)
    tokens = windows(value, 0.0, (1, heads, value.shape[1] // heads))
    out = sum_of_products(zip(tokens, entries(attn, 3), strict=True)).flatten(2, 3)
    return (out.squeeze(1) if sum_queries else out).to(value.dtype)

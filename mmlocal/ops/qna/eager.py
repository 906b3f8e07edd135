"""The QnA op in plain PyTorch, tap by tap: no window is ever stored.

Scores have ``queries * heads`` channels, and values have ``heads * head_dims`` channels. The
softmax takes three passes over the taps of the scores: maximum, sum, weights. The weights of all
queries are then added before they multiply the value. So the value is read once per tap, whatever
the number of queries. Every exponent is relative to the maximum of its own window. So no finite
score overflows, and the largest token of a window always counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlocal.ops.eager_common import chunks, taps_inside
from mmlocal.ops.layout import to_layout
from mmlocal.ops.qna.reference import output_size


class _Windows:
    """The softmax over the windows of one chunk of samples, one tap at a time.

    Args:
        scores: ``(b, queries, heads, H, W)``.
        rel_pos: ``(taps, queries, heads, 1, 1)`` or ``None``.
        taps: the result of ``taps_inside``.
        size: height and width of the output.
    """

    def __init__(
        self, scores: Tensor, rel_pos: Tensor | None, taps: list[tuple], size: list[int]
    ) -> None:
        self.scores = scores
        self.rel_pos = rel_pos
        peak = scores.new_full((*scores.shape[:3], *size), float("-inf"))
        for tap, own, other in taps:
            logits = scores[other] if rel_pos is None else scores[other] + rel_pos[tap]
            torch.maximum(peak[own], logits, out=peak[own])
        self.peak = peak.masked_fill_(peak == float("-inf"), 0.0)
        total = torch.zeros_like(peak)
        for tap, own, other in taps:
            total[own] += self._exp(tap, own, other)
        self.scale = total.masked_fill_(total == 0, 1.0).reciprocal_()

    def _exp(self, tap: int, own: tuple, other: tuple) -> Tensor:
        # The order matters: added to a large score, the position would lose its digits.
        exponent = self.scores[other] - self.peak[own]
        if self.rel_pos is not None:
            exponent += self.rel_pos[tap]
        return exponent.exp_()

    def attention(self, tap: int, own: tuple, other: tuple) -> Tensor:
        """Return ``(b, queries, heads, windows with this tap in the map)``."""
        return self._exp(tap, own, other).mul_(self.scale[own])


def _table(table: Tensor | None, num_queries: int, dtype: torch.dtype) -> Tensor | None:
    """Return ``(queries * heads, k, k)`` as ``(taps, queries, heads, 1, 1)``."""
    if table is None:
        return None
    table = table.to(dtype).flatten(1).t()
    return table.reshape(table.shape[0], num_queries, -1, 1, 1)


def _split(
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None,
    tap_weight: Tensor | None,
    num_queries: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Split the channels of the maps, all in the dtype of the computation."""
    batch, channels, height, width = value.shape
    heads = scores.shape[1] // num_queries
    dtype = torch.promote_types(value.dtype, torch.float32)
    # The loop over taps reads whole rows, so W has to be the innermost dimension in memory.
    return (
        value.to(dtype).contiguous().view(batch, heads, channels // heads, height, width),
        scores.to(dtype).contiguous().view(batch, num_queries, heads, height, width),
        _table(rel_pos, num_queries, dtype),
        _table(tap_weight, num_queries, dtype),
    )


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
    batch, channels = value.shape[:2]
    size = [output_size(n, kernel_size, stride, padding) for n in value.shape[2:]]
    v, s, rel_pos, weight = _split(value, scores, rel_pos, tap_weight, num_queries)
    taps = taps_inside(kernel_size, stride, padding, 1, value.shape[2:], size)
    queries = 1 if sum_queries else num_queries
    out = v.new_zeros(batch, queries, *v.shape[1:3], *size)
    for chunk in chunks(v):
        windows = _Windows(s[chunk], rel_pos, taps, size)
        for tap, own, other in taps:
            attn = windows.attention(tap, own, other)
            if weight is not None:
                attn *= weight[tap]
            if sum_queries:
                attn = attn.sum(dim=1, keepdim=True)
            out[chunk][own].addcmul_(attn[:, :, :, None], v[chunk][other][:, None])
    shape = (batch, channels, *size) if sum_queries else (batch, num_queries, channels, *size)
    return to_layout(out.view(shape), value)


def backward(
    grad: Tensor,
    value: Tensor,
    scores: Tensor,
    rel_pos: Tensor | None,
    tap_weight: Tensor | None,
    num_queries: int,
    kernel_size: int,
    stride: int,
    padding: int,
    sum_queries: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``value, scores, rel_pos, tap_weight``, ``None`` where not needed.

    The softmax is computed again instead of being kept from the forward pass.
    """
    need_value, need_scores, need_rel_pos, need_weight = needs_grad
    size = [output_size(n, kernel_size, stride, padding) for n in value.shape[2:]]
    v, s, bias, weight = _split(value, scores, rel_pos, tap_weight, num_queries)
    taps = taps_inside(kernel_size, stride, padding, 1, value.shape[2:], size)
    queries = 1 if sum_queries else num_queries
    g = grad.to(v.dtype).contiguous().view(v.shape[0], queries, *v.shape[1:3], *size)

    grad_v = torch.zeros_like(v) if need_value else None
    grad_s = torch.zeros_like(s) if need_scores else None
    tables = (kernel_size**2, num_queries, s.shape[2])
    grad_bias = v.new_zeros(tables) if need_rel_pos else None
    grad_weight = v.new_zeros(tables) if need_weight else None
    for chunk in chunks(v):
        windows = _Windows(s[chunk], bias, taps, size)

        def grad_of_weighted(own: tuple, other: tuple, chunk: slice = chunk) -> Tensor:
            """Gradient of attention times weight: ``(b, queries or 1, heads, windows)``."""
            return (g[chunk][own] * v[chunk][other][:, None]).sum(dim=3)

        mean = None
        if need_scores or need_rel_pos:
            mean = torch.zeros_like(windows.peak)  # mean gradient under the attention
            for tap, own, other in taps:
                attn = windows.attention(tap, own, other)
                if weight is not None:
                    attn *= weight[tap]
                mean[own].addcmul_(attn, grad_of_weighted(own, other))
        for tap, own, other in taps:
            attn = windows.attention(tap, own, other)
            if grad_v is not None:
                mix = attn if weight is None else attn * weight[tap]
                if sum_queries:
                    mix = mix.sum(dim=1, keepdim=True)
                grad_v[chunk][other] += (g[chunk][own] * mix[:, :, :, None]).sum(dim=1)
            if mean is None and grad_weight is None:
                continue
            grad_attn = grad_of_weighted(own, other).expand_as(attn)
            if grad_weight is not None:
                grad_weight[tap] += (grad_attn * attn).sum(dim=(0, 3, 4))
            if mean is not None:
                if weight is not None:
                    grad_attn = grad_attn * weight[tap]
                grad_logits = (grad_attn - mean[own]).mul_(attn)
                if grad_s is not None:
                    grad_s[chunk][other] += grad_logits
                if grad_bias is not None:
                    grad_bias[tap] += grad_logits.sum(dim=(0, 3, 4))

    def to_map(grads: Tensor | None, like: Tensor) -> Tensor | None:
        return None if grads is None else to_layout(grads.view(like.shape), like)

    def to_table(grads: Tensor | None, table: Tensor | None) -> Tensor | None:
        if grads is None or table is None:
            return None
        return grads.flatten(1).t().contiguous().view(table.shape).to(table.dtype)

    return (
        to_map(grad_v, value),
        to_map(grad_s, scores),
        to_table(grad_bias, rel_pos),
        to_table(grad_weight, tap_weight),
    )

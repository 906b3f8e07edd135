"""Definition of the QnA op. It writes every window out, so it is slow and takes much memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def output_size(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Return the number of windows along a side of ``size`` tokens."""
    return (size + 2 * padding - kernel_size) // stride + 1


def attention_maps(
    scores: Tensor,
    rel_pos: Tensor | None,
    num_queries: int,
    kernel_size: int,
    stride: int,
    padding: int,
) -> Tensor:
    """Return the attention of each window to its tokens. Autograd differentiates this function.

    Args:
        scores: ``(B, num_queries * heads, H, W)``, query-major, any float dtype.
        rel_pos: ``(num_queries * heads, kernel_size, kernel_size)``, or ``None`` for 0.
        num_queries: number of learned queries per window.
        kernel_size: width of the window, in tokens.
        stride: distance between windows, in tokens.
        padding: number of tokens by which windows reach beyond the map.

    Returns:
        ``(B, num_queries, heads, kernel_size**2, H_out, W_out)``, float32 or float64. The sum over
        the taps is 1, or 0 where a window holds no token. Taps outside the map are 0.
    """
    batch, channels = scores.shape[:2]
    heads = channels // num_queries
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    size = [output_size(n, kernel_size, stride, padding) for n in scores.shape[2:]]
    logits = _windows(scores.to(dtype), float("-inf"), kernel_size, stride, padding)
    logits = logits.reshape(batch, num_queries, heads, kernel_size**2, *size)
    # The softmax ignores this shift. Added to a large score, a position would lose its digits.
    peak = logits.detach().amax(dim=3, keepdim=True)
    logits = logits - peak.masked_fill(peak == float("-inf"), 0.0)
    if rel_pos is not None:
        logits = logits + rel_pos.to(dtype).reshape(1, num_queries, heads, -1, 1, 1)
    # Tokens outside the map do not exist, whatever ``rel_pos`` holds for them.
    outside = _outside(scores, kernel_size, stride, padding)
    logits = logits.masked_fill(outside, float("-inf"))
    empty = (logits == float("-inf")).all(dim=3, keepdim=True)
    return logits.masked_fill(empty, 0.0).softmax(dim=3).masked_fill(empty | outside, 0.0)


def _windows(x: Tensor, fill: float, kernel_size: int, stride: int, padding: int) -> Tensor:
    """Return ``(B, C, H, W)`` as ``(B, C, kernel_size, kernel_size, H_out, W_out)``."""
    # F.unfold would multiply by 0 and so turn -inf into NaN.
    x = F.pad(x, (padding,) * 4, value=fill)
    return x.unfold(2, kernel_size, stride).unfold(3, kernel_size, stride).permute(0, 1, 4, 5, 2, 3)


def _outside(like: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """Mark the taps of each window outside the map: ``(1, 1, 1, taps, H_out, W_out)``."""
    inside = torch.ones(1, 1, *like.shape[2:], dtype=torch.bool, device=like.device)
    windows = _windows(inside, False, kernel_size, stride, padding)
    return ~windows.reshape(1, 1, 1, kernel_size**2, *windows.shape[4:])


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
    """See :func:`mmlocal.ops.qna.qna_attention`. Autograd differentiates this function."""
    batch, channels = value.shape[:2]
    attn = attention_maps(scores, rel_pos, num_queries, kernel_size, stride, padding)
    heads, taps, out_height, out_width = attn.shape[2:]
    if tap_weight is not None:
        attn = attn * tap_weight.to(attn.dtype).reshape(1, num_queries, heads, taps, 1, 1)
        attn = attn.masked_fill(_outside(value, kernel_size, stride, padding), 0.0)
    windows = F.unfold(value.to(attn.dtype), kernel_size, padding=padding, stride=stride)
    windows = windows.view(batch, heads, channels // heads, taps, out_height, out_width)
    # Under autocast, einsum would multiply in bfloat16.
    out = (attn[:, :, :, None] * windows[:, None]).sum(dim=4)
    if sum_queries:
        return out.sum(dim=1).reshape(batch, channels, out_height, out_width).to(value.dtype)
    return out.reshape(batch, num_queries, channels, out_height, out_width).to(value.dtype)

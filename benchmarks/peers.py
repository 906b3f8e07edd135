"""Alternatives to our ops that a user could pick."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks.contestants import Built, CannotRunError, Contestant, op_tensors
from benchmarks.deformable import DEFORMABLE_PEERS
from benchmarks.unfold import UNFOLD_PEERS
from mmlocal.ops import elsa_attention, neighborhood_scores
from mmlocal.ops.cases import Case, Make
from mmlocal.ops.qna.analysis import NUM_QUERIES

_HALO_BLOCK = 8
_FLEX_BLOCK = 128


def exp_convolutions(
    value: Tensor, scores: Tensor, rel_pos: Tensor, tap_weight: Tensor, *, stride: int
) -> Tensor:
    """QnA by two depth-wise convolutions of exponentials, as in the official code.

    ``sum_l conv(exp(S) * V, exp(R) * W) / conv(exp(S), exp(R))``. Overflows for large scores.

    Args:
        value: values, as for :func:`mmlocal.ops.qna_attention`.
        scores: scores S, as for :func:`mmlocal.ops.qna_attention`.
        rel_pos: relative position bias R, as for :func:`mmlocal.ops.qna_attention`.
        tap_weight: weights W, as for :func:`mmlocal.ops.qna_attention`.
        stride: step between windows in pixels.

    Returns:
        Output, as from :func:`mmlocal.ops.qna_attention`.

    Source:
        Learned Queries for Efficient Local Attention, Arar et al. 2022, section 3.
    """
    batch, channels = value.shape[:2]
    tables, k = rel_pos.shape[:2]
    heads = tables // NUM_QUERIES
    weight, position = scores.exp(), rel_pos.exp()
    settings = dict(stride=stride, padding=k // 2)
    total = F.conv2d(weight, position[:, None], groups=tables, **settings)
    weighted = weight.unflatten(1, (NUM_QUERIES, heads, 1)) * value.unflatten(1, (1, heads, -1))
    filters = (position * tap_weight).repeat_interleave(channels // heads, dim=0)
    mixed = F.conv2d(weighted.flatten(1, 3), filters[:, None], groups=len(filters), **settings)
    mixed = mixed.view(batch, NUM_QUERIES, heads, -1, *mixed.shape[2:])
    out = mixed / total.unflatten(1, (NUM_QUERIES, heads, 1))
    return out.sum(dim=1).flatten(1, 2)


def _exp_convolutions(case: Case, make: Make) -> Built:
    return op_tensors(case, make), partial(exp_convolutions, stride=case.stride)


def sliding_attention(
    query: Tensor, key: Tensor, value: Tensor, *, heads: int, kernel_size: int
) -> Tensor:
    """Stand-alone self-attention by our ops: scores of each window, then the weighted sum.

    Zeros outside the map take part, as in :func:`unfold_attention`.

    Args:
        query: queries times ``(C / heads) ** -0.5``, ``(B, C, H, W)``.
        key: keys, ``(B, C, H, W)``.
        value: values, ``(B, C, H, W)``.
        heads: number of heads.
        kernel_size: side of a window in pixels, odd.

    Returns:
        Output, ``(B, C, H, W)``.

    Source:
        Stand-Alone Self-Attention in Vision Models, Ramachandran et al. 2019, without positions.
    """
    scores = neighborhood_scores(query, key, num_heads=heads, kernel_size=kernel_size)
    return elsa_attention(value, scores, kernel_size=kernel_size)


def unfold_attention(
    query: Tensor, key: Tensor, value: Tensor, *, heads: int, kernel_size: int
) -> Tensor:
    """:func:`sliding_attention` in plain PyTorch: ``F.unfold`` writes all windows out.

    Args:
        query: queries times ``(C / heads) ** -0.5``, ``(B, C, H, W)``.
        key: keys, ``(B, C, H, W)``.
        value: values, ``(B, C, H, W)``.
        heads: number of heads.
        kernel_size: side of a window in pixels, odd.

    Returns:
        Output, ``(B, C, H, W)``.
    """
    head_dims = query.shape[1] // heads
    keys, values = (
        F.unfold(x, kernel_size, padding=kernel_size // 2).unflatten(1, (heads, head_dims, -1))
        for x in (key, value)
    )
    own = query.flatten(2).unflatten(1, (heads, head_dims, 1))
    weights = (own * keys).sum(dim=2).softmax(dim=2)
    return (weights.unsqueeze(2) * values).sum(dim=3).reshape(query.shape)


def _over_windows(attention: Callable[..., Tensor], case: Case, make: Make) -> Built:
    shape = (case.batch, case.channels, case.height, case.width)
    tensors = {name: make(*shape) for name in ("query", "key", "value")}
    # A layer scales its queries in the projection.
    scaled = tensors["query"].detach() * (case.channels // case.heads) ** -0.5
    tensors["query"] = scaled.requires_grad_()
    return tensors, partial(attention, heads=case.heads, kernel_size=case.kernel_size)


def output_stride(case: Case) -> int:
    """Distance between outputs in pixels. Outlook attention folds its windows to a whole map.

    Args:
        case: shape of an op.
    """
    return 1 if case.op == "outlook" else case.stride


def _convolution(depthwise: bool, case: Case, make: Make) -> Built:
    k, groups = case.kernel_size, case.channels if depthwise else 1
    tensors = {
        "input": make(case.batch, case.channels, case.height, case.width),
        "weight": make(case.channels, case.channels // groups, k, k),
    }
    return tensors, partial(F.conv2d, stride=output_stride(case), padding=k // 2, groups=groups)


def _make_qkv(case: Case, make: Make) -> dict[str, Tensor]:
    if output_stride(case) != 1:
        raise CannotRunError("has no stride")
    shape = (case.batch, case.height, case.width, case.heads, case.channels // case.heads)
    return {name: make(*shape) for name in ("query", "key", "value")}


def _cut(x: Tensor, block: int, halo: int) -> Tensor:
    """Cut ``(B, H, W, heads, d)`` into blocks with a halo, ``(B * blocks, heads, tokens, d)``."""
    below, right = (-size % block for size in x.shape[1:3])
    x = F.pad(x, (0, 0, 0, 0, halo, halo + right, halo, halo + below))
    x = x.unfold(1, block + 2 * halo, block).unfold(2, block + 2 * halo, block)
    return x.permute(0, 1, 2, 3, 5, 6, 4).flatten(0, 2).flatten(2, 3)


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, block: int, halo: int
) -> Tensor:
    """Attention in blocks of pixels: each block attends to itself and ``halo`` pixels around it.

    With ``halo=0``, this is the window attention of Swin. HaloNet uses blocks of 8 pixels.

    Args:
        query: queries, ``(B, H, W, heads, head_dims)``.
        key: keys, ``(B, H, W, heads, head_dims)``.
        value: values, ``(B, H, W, heads, head_dims)``.
        mask: result of :func:`tokens_in_map`. With ``None``, the zeros outside the map take part,
            as in Swin.
        block: side of a block in pixels.
        halo: width of the halo in pixels.

    Returns:
        Output, ``(B, H, W, heads, head_dims)``.

    Source:
        Scaling Local Self-Attention for Parameter Efficient Visual Backbones, Vaswani et al. 2021;
        Swin Transformer, Liu et al. 2021.
    """
    batch, height, width = query.shape[:3]
    out = F.scaled_dot_product_attention(
        _cut(query, block, 0), _cut(key, block, halo), _cut(value, block, halo), attn_mask=mask
    )
    rows, cols = -(-height // block), -(-width // block)
    out = out.unflatten(2, (block, block)).unflatten(0, (batch, rows, cols))
    out = out.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
    return out[:, :height, :width]


def tokens_in_map(like: Tensor, block: int, halo: int) -> Tensor:
    """Mark the keys of each block that lie in the map.

    Args:
        like: keys, ``(B, H, W, heads, head_dims)``.
        block: side of a block in pixels.
        halo: width of the halo in pixels.

    Returns:
        Mask, ``(B * blocks, 1, 1, tokens)``, bool.
    """
    ones = torch.ones_like(like[..., :1, :1], requires_grad=False)
    return _cut(ones, block, halo).transpose(2, 3) > 0


def _halo(case: Case, make: Make) -> Built:
    tensors = _make_qkv(case, make)
    settings = dict(block=_HALO_BLOCK, halo=case.kernel_size // 2)
    mask = tokens_in_map(tensors["key"], **settings)
    return tensors, partial(block_attention, mask=mask, **settings)


def _swin(case: Case, make: Make) -> Built:
    tensors = _make_qkv(case, make)
    return tensors, partial(block_attention, mask=None, block=case.kernel_size, halo=0)


def neighbourhood_mask(
    height: int, width: int, kernel_size: int, device: torch.device | str
) -> BlockMask:
    """Make FlexAttention's mask for windows around each pixel, cut off at the border.

    Tokens are pixels, row by row. This function computes the blocks from indices, because
    ``create_block_mask`` looks at every pair of pixels, 4 billion for a map of 200x320.

    Args:
        height: height of the map in pixels.
        width: width of the map in pixels.
        kernel_size: side of a window in pixels, odd.
        device: device of the mask.
    """
    radius, tokens = kernel_size // 2, height * width

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        rows, cols = q // width - kv // width, q % width - kv % width
        return (rows.abs() <= radius) & (cols.abs() <= radius)

    blocks = torch.arange(-(-tokens // _FLEX_BLOCK), device=device)
    first = blocks[:, None] * _FLEX_BLOCK
    last = (first + _FLEX_BLOCK - 1).clamp(max=tokens - 1)
    touched = torch.zeros(len(blocks), len(blocks), dtype=torch.bool, device=device)
    for row in range(-radius, radius + 1):
        low, high = first + row * width - radius, last + row * width + radius
        touched |= (blocks >= low // _FLEX_BLOCK) & (blocks <= high // _FLEX_BLOCK)
    order = touched.int().argsort(dim=1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        touched.sum(dim=1).int()[None, None],
        order[None, None],
        BLOCK_SIZE=_FLEX_BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(tokens, tokens),
    )


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, attention: Callable[..., Tensor]
) -> Tensor:
    """Apply FlexAttention to maps.

    Args:
        query: queries, ``(B, H, W, heads, head_dims)``.
        key: keys, ``(B, H, W, heads, head_dims)``.
        value: values, ``(B, H, W, heads, head_dims)``.
        mask: result of :func:`neighbourhood_mask`.
        attention: ``flex_attention``, compiled or not.

    Returns:
        Output, ``(B, H, W, heads, head_dims)``.
    """
    flat = [x.flatten(1, 2).transpose(1, 2) for x in (query, key, value)]
    return attention(*flat, block_mask=mask).transpose(1, 2).view(query.shape)


def _flex(case: Case, make: Make) -> Built:
    tensors = _make_qkv(case, make)
    device = tensors["key"].device
    mask = neighbourhood_mask(case.height, case.width, case.kernel_size, device)
    torch.compiler.reset()  # it stops compiling after too many shapes
    attention = torch.compile(flex_attention, dynamic=False)
    return tensors, partial(masked_attention, mask=mask, attention=attention)


def _natten(case: Case, make: Make) -> Built:
    if importlib.util.find_spec("natten") is None:
        raise CannotRunError("natten is not installed")
    from natten.functional import na2d

    return _make_qkv(case, make), partial(na2d, kernel_size=case.kernel_size)


PEERS = (
    *UNFOLD_PEERS,
    *DEFORMABLE_PEERS,
    Contestant("dwconv", "depth-wise convolution", partial(_convolution, True)),
    Contestant("conv", "dense convolution", partial(_convolution, False)),
    Contestant("exp_conv", "QnA by two depth-wise convolutions", _exp_convolutions, ("qna",)),
    Contestant(
        "sasa",
        "stand-alone self-attention: neighborhood_scores, then elsa_attention",
        partial(_over_windows, sliding_attention),
        ("neighborhood",),
    ),
    Contestant(
        "sasa_unfold",
        "stand-alone self-attention by unfold",
        partial(_over_windows, unfold_attention),
        ("neighborhood",),
    ),
    Contestant("swin", "window attention, window of the kernel size", _swin),
    Contestant("halo", "HaloNet: blocks of 8x8 see k // 2 pixels around", _halo),
    Contestant("flex", "FlexAttention, compiled, neighbourhood mask", _flex),
    Contestant("natten", "NATTEN's neighbourhood attention", _natten),
)

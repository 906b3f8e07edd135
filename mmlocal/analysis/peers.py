"""Contestants of ``tools/benchmark_ops.py``: our backends, alternatives to them, and shapes.

A contestant starts where its projections end: ours at values and logits (ELSA) or scores (QnA),
convolutions at the values, other attention at queries, keys and values. Its tensors are laid out
as a layer hands them over: maps channels last, ``(B, H, W, heads, head_dims)`` for attention.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mmlocal.models.backbones import ELSASwin, QnAViT
from mmlocal.ops import OPS, elsa_attention, qna_attention

NUM_QUERIES = 2  # of all published QnA-ViTs
_HALO_BLOCK = 8
_FLEX_BLOCK = 128


class CannotRunError(RuntimeError):
    """A contestant does not fit this case or machine; says why."""


# ------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Case:
    """One shape of one op.

    Args:
        op: ``"elsa"`` or ``"qna"``.
        name: what has this shape.
        batch: images.
        channels: of the values.
        heads: must divide ``channels``.
        height: of the map in pixels.
        width: of the map in pixels.
        kernel_size: odd width of the window.
        stride: distance between windows; 1 for ELSA.
    """

    op: str
    name: str
    batch: int
    channels: int
    heads: int
    height: int
    width: int
    kernel_size: int
    stride: int = 1


# Images of the stages: batch, height and width in pixels.
_IMAGES = ((4, 224, 224), (1, 800, 1280))


def _published_stages() -> Iterator[tuple]:
    """Op, model, stage from 0, channels, heads, kernel size and stride of all published models."""
    for model, arch in ELSASwin.arch_zoo.items():
        # The last stage has window attention.
        for stage, heads in enumerate(arch["num_heads"][:-1]):
            yield "elsa", f"ELSA-Swin {model}", stage, arch["embed_dims"] * 2**stage, heads, 7, 1
    for model, arch in QnAViT.arch_zoo.items():
        k, last = arch["kernel_size"], len(arch["qna_depths"]) - 1
        for stage, (depth, heads) in enumerate(
            zip(arch["qna_depths"], arch["qna_heads"], strict=True)
        ):
            channels = arch["embed_dims"] * 2**stage
            if depth:
                yield "qna", f"QnA-ViT {model}", stage, channels, heads, k, 1
            if stage < last:
                yield "qna", f"QnA-ViT {model}", stage, 2 * channels, 2 * heads, k, 2


def stages() -> list[Case]:
    """Every stage of every published model that runs one of our ops; equal shapes only once."""
    found: dict[tuple, list[str]] = {}
    for (batch, *image), (op, model, stage, channels, heads, k, stride) in itertools.product(
        _IMAGES, list(_published_stages())
    ):
        height, width = (-(-pixels // 2 ** (stage + 2)) for pixels in image)
        place = f"stage {stage + 1}{' down' if stride > 1 else ''} at {image[0]}x{image[1]}"
        shape = (batch, channels, heads, height, width, k, stride)
        found.setdefault((op, place, shape), []).append(model)
    return [
        Case(op, f"{' = '.join(models)}, {place}", *shape)
        for (op, place, shape), models in found.items()
    ]


def _one_stage(op: str, name: str, batch: int, side: int, kernel_size: int) -> Case:
    """64 channels, with the head dimensions of the published models: 32 for ELSA, 8 for QnA."""
    return Case(op, name, batch, 64, {"elsa": 2, "qna": 8}[op], side, side, kernel_size)


def figure2() -> list[Case]:
    """Maps of 256x256x64 and growing windows, as in figure 2 of the paper of QnA."""
    return [
        _one_stage(op, f"256x256x64, {k}x{k}", 1, 256, k)
        for op in ("elsa", "qna")
        for k in (3, 5, 7, 9, 11, 13)
    ]


def resolution() -> list[Case]:
    """Windows of 7x7 and growing maps of 64 channels."""
    return [
        _one_stage(op, f"{side}x{side}x64, 7x7", 1, side, 7)
        for op in ("elsa", "qna")
        for side in (32, 64, 128, 256, 512)
    ]


def smoke() -> list[Case]:
    """Two tiny maps per op, to see whether everything runs; their times tell nothing."""
    return [
        Case("elsa", "tiny, 3x3", 2, 16, 2, 9, 11, 3),
        Case("elsa", "tiny, 5x5", 1, 16, 2, 9, 11, 5),
        Case("qna", "tiny, 3x3", 2, 16, 2, 9, 11, 3),
        Case("qna", "tiny, 3x3, down", 1, 16, 2, 9, 11, 3, stride=2),
    ]


SHAPES: dict[str, Callable[[], list[Case]]] = {
    "stages": stages,
    "figure2": figure2,
    "resolution": resolution,
    "smoke": smoke,
}


# -------------------------------------------------------------------------------- contestants


# Makes a leaf tensor of this shape on the device and in the dtype of the run; a fourth dimension
# makes it a map, ``(B, C, H, W)``, channels last in memory.
Make = Callable[..., Tensor]
# Input tensors, and what is timed on them.
Built = tuple[dict[str, Tensor], Callable[..., Tensor]]


@dataclass(frozen=True)
class Contestant:
    """One way to mix neighbouring pixels.

    Args:
        name: of the backend or peer.
        description: one line for the report.
        ops: those that it stands beside.
        build: makes, from a case, the input tensors and the function that is timed on them.
            Raises :class:`CannotRunError`.
    """

    name: str
    description: str
    ops: tuple[str, ...]
    build: Callable[[Case, Make], Built]


def make_tensors(device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> Make:
    """The ``make`` that contestants are built with: normal numbers, the same for every seed."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator).to(device, dtype)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_()

    return make


def available_memory() -> int | None:
    """Bytes of main memory that a process can still get, or ``None`` where the system has no say.

    Linux kills a process that takes more, instead of failing an allocation.
    """
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def _check_windows_fit(case: Case, like: Tensor) -> None:
    """``reference`` writes out windows: with gradients, at least six times the values in them."""
    queries = NUM_QUERIES if case.op == "qna" else 1
    pixels = case.batch * case.height * case.width // case.stride**2
    needed = (
        6 * queries * pixels * case.channels * case.kernel_size**2 * max(4, like.element_size())
    )
    free = available_memory()
    if like.device.type == "cpu" and free is not None and needed > free:
        raise CannotRunError(f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free")


def op_function(case: Case, backend: str) -> Callable[..., Tensor]:
    """The op with the settings of a case, as a function of its tensors."""
    k = case.kernel_size
    if case.op == "elsa":
        return partial(elsa_attention, kernel_size=k, backend=backend)
    settings = dict(num_queries=NUM_QUERIES, kernel_size=k, stride=case.stride, padding=k // 2)
    return partial(qna_attention, **settings, backend=backend)


def op_tensors(case: Case, make: Make) -> dict[str, Tensor]:
    """Arguments of :func:`op_function`, as published: ELSA has an additive ghost head only."""
    size, k = (case.height, case.width), case.kernel_size
    value = make(case.batch, case.channels, *size)
    if case.op == "elsa":
        attn = make(case.batch, case.heads * k**2, *size)
        return dict(value=value, attn=attn, ghost_add=make(case.channels, k, k))
    tables = NUM_QUERIES * case.heads
    scores = make(case.batch, tables, *size)
    return dict(
        value=value, scores=scores, rel_pos=make(tables, k, k), tap_weight=make(tables, k, k)
    )


def _backend(name: str, case: Case, make: Make) -> Built:
    if name == "reference":
        _check_windows_fit(case, make(1))
    return op_tensors(case, make), op_function(case, name)


def list_backends(op: str) -> list[Contestant]:
    """All backends of an op as contestants, whether they run here or not, fastest first."""
    return [
        Contestant(backend.name, backend.description, (op,), partial(_backend, backend.name))
        for backend in OPS[op].backends
    ]


# -------------------------------------------------------------------------------------- peers


def exp_convolutions(
    value: Tensor, scores: Tensor, rel_pos: Tensor, tap_weight: Tensor, *, stride: int
) -> Tensor:
    """QnA by two depth-wise convolutions of exponentials, as in the official code.

    ``sum_l conv(exp(S) * V, exp(R) * W) / conv(exp(S), exp(R))``. Overflows for large scores.

    Args:
        value: as in :func:`mmlocal.ops.qna_attention`, as are ``scores``, ``rel_pos``,
            ``tap_weight`` and ``stride``.

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


def _convolution(depthwise: bool, case: Case, make: Make) -> Built:
    k, groups = case.kernel_size, case.channels if depthwise else 1
    tensors = {
        "input": make(case.batch, case.channels, case.height, case.width),
        "weight": make(case.channels, case.channels // groups, k, k),
    }
    return tensors, partial(F.conv2d, stride=case.stride, padding=k // 2, groups=groups)


def _make_qkv(case: Case, make: Make) -> dict[str, Tensor]:
    if case.stride != 1:
        raise CannotRunError("has no stride")
    shape = (case.batch, case.height, case.width, case.heads, case.channels // case.heads)
    return {name: make(*shape) for name in ("query", "key", "value")}


def _cut(x: Tensor, block: int, halo: int) -> Tensor:
    """``(B, H, W, heads, d)`` in blocks with a halo: ``(B * blocks, heads, tokens, d)``."""
    below, right = (-size % block for size in x.shape[1:3])
    x = F.pad(x, (0, 0, 0, 0, halo, halo + right, halo, halo + below))
    x = x.unfold(1, block + 2 * halo, block).unfold(2, block + 2 * halo, block)
    return x.permute(0, 1, 2, 3, 5, 6, 4).flatten(0, 2).flatten(2, 3)


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, block: int, halo: int
) -> Tensor:
    """Attention of non-overlapping blocks of pixels to the same block and ``halo`` pixels around.

    ``halo=0`` is the window attention of Swin; that of HaloNet has blocks of 8 pixels.

    Args:
        query: ``(B, H, W, heads, head_dims)``, as are ``key`` and ``value``.
        mask: of :func:`tokens_in_map`, or ``None`` to let the zeros outside the map take part, as
            they do in Swin.
        block: width of a block.
        halo: pixels by which keys and values stick out of it on each side.

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
    """Which keys of each block lie in the map: ``(B * blocks, 1, 1, tokens)``, bool."""
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
    """FlexAttention's mask for windows around each pixel, cut at the border; pixels row by row.

    The blocks come from index arithmetic: ``create_block_mask`` looks at every pair of pixels,
    4 billion for a map of 200x320.
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
    """``attention`` (FlexAttention, compiled or not) on ``(B, H, W, heads, head_dims)``."""
    flat = [x.flatten(1, 2).transpose(1, 2) for x in (query, key, value)]
    return attention(*flat, block_mask=mask).transpose(1, 2).view(query.shape)


def _flex(case: Case, make: Make) -> Built:
    tensors = _make_qkv(case, make)
    device = tensors["key"].device
    mask = neighbourhood_mask(case.height, case.width, case.kernel_size, device)
    torch.compiler.reset()  # or it stops to compile after some shapes
    attention = torch.compile(flex_attention, dynamic=False)
    return tensors, partial(masked_attention, mask=mask, attention=attention)


def _natten(case: Case, make: Make) -> Built:
    if importlib.util.find_spec("natten") is None:
        raise CannotRunError("natten is not installed")
    from natten.functional import na2d

    return _make_qkv(case, make), partial(na2d, kernel_size=case.kernel_size)


_BOTH = ("elsa", "qna")

PEERS = (
    Contestant("dwconv", "depth-wise convolution", _BOTH, partial(_convolution, True)),
    Contestant("conv", "dense convolution", _BOTH, partial(_convolution, False)),
    Contestant("exp_conv", "QnA by two depth-wise convolutions", ("qna",), _exp_convolutions),
    Contestant("swin", "window attention, window of the kernel size", _BOTH, _swin),
    Contestant("halo", "HaloNet: blocks of 8x8 see k // 2 pixels around", _BOTH, _halo),
    Contestant("flex", "FlexAttention, compiled, neighbourhood mask", _BOTH, _flex),
    Contestant("natten", "NATTEN's neighbourhood attention", _BOTH, _natten),
)

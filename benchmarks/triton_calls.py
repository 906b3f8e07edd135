"""The calls of the published models at 224x224, for tensors that hold no numbers.

Each is the forward and the backward pass of one operator in Triton. Maps are channels-last in
memory, as the layers pass them on, except for DDF.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from mmlocal.ops.deformable import triton_fused as deformable_fused
from mmlocal.ops.deformable import triton_impl as deformable
from mmlocal.ops.elsa import triton_impl as elsa
from mmlocal.ops.elsa import triton_projected as projected
from mmlocal.ops.neighborhood import triton_impl as neighborhood
from mmlocal.ops.outlook import triton_impl as outlook
from mmlocal.ops.qna import triton_impl as qna

# Images of a batch: enough to fill a large GPU.
_BATCH = 32


@dataclass(frozen=True)
class Call:
    """A call of an operator.

    Args:
        name: name for readers.
        module: has the functions ``forward`` and ``backward``.
        shapes: shapes of the tensors; ``None`` for one that is left out.
        settings: the other arguments.
        deterministic: whether sums must not depend on the order of programs.
    """

    name: str
    module: ModuleType
    shapes: Sequence[tuple[int, ...] | None]
    settings: tuple
    deterministic: bool = False

    def run(self, dtype: torch.dtype) -> None:
        """Call the forward and the backward pass, with the gradients of all tensors."""
        tensors = [None if s is None else self._empty(s, dtype) for s in self.shapes]
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(self.deterministic)
        try:
            out = self.module.forward(*tensors, *self.settings)
            needed = [x is not None for x in tensors]
            self.module.backward(out, *tensors, *self.settings, needed)
        finally:
            torch.use_deterministic_algorithms(before)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        is_map = len(shape) == 4 and shape[0] == _BATCH
        layout = torch.channels_last if is_map else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def _ghost_heads(kind: str, channels: int, kernel: int) -> list[tuple[int, ...] | None]:
    """Return the shapes of the two ghost heads. ``kind`` names the ones that exist."""
    table = (channels, kernel, kernel)
    return [table if name in kind else None for name in ("mul", "add")]


def _elsa(
    name: str, channels: int, side: int, heads: int, ghost: str = "",
    softmax: bool = True, kernel: int = 7,
) -> Call:  # fmt: skip
    size = (side, side)
    maps = [(_BATCH, channels, *size), (_BATCH, heads * kernel**2, *size)]
    shapes = [*maps, *_ghost_heads(ghost, channels, kernel)]
    return Call(name, elsa, shapes, (kernel, 1, softmax))


def _ddf(name: str, channels: int, side: int) -> Call:
    """The images are heads of one image. Its channels are before the pixels."""
    size, all_channels = (side, side), _BATCH * channels
    maps = [(1, all_channels, *size), (1, _BATCH * 49, *size)]
    return Call(name, elsa, [*maps, *_ghost_heads("mul", all_channels, 7)], (7, 1, False))


def _projected(
    name: str, channels: int, side: int, dims: int, ghost: str = "add", kernel: int = 7
) -> Call:
    logits, size = channels // 32 * kernel**2, (side, side)
    maps = [(_BATCH, channels, *size), (_BATCH, dims, *size)]
    tables = _ghost_heads(ghost, channels, kernel)
    return Call(name, projected, [*maps, (logits, dims), (logits,), *tables], (kernel, 1))


def _neighborhood(
    name: str, channels: int, side: int, kernel: int = 7, masked: bool = True
) -> Call:
    size = (_BATCH, channels, side, side)
    return Call(name, neighborhood, [size, size], (channels // 32, kernel, 1, masked))


def _qna(
    name: str, channels: int, side: int, queries: int = 2, kernel: int = 3, stride: int = 1,
    per_head: int = 8, summed: bool = True, tap_weight: bool = True,
) -> Call:  # fmt: skip
    scores, size = queries * channels // per_head, (side, side)
    maps = [(_BATCH, channels, *size), (_BATCH, scores, *size)]
    table = (scores, kernel, kernel)
    settings = (queries, kernel, stride, kernel // 2, summed)
    return Call(name, qna, [*maps, table, table if tap_weight else None], settings)


def _outlook(name: str, channels: int, side: int) -> Call:
    windows, heads = (side + 1) // 2, channels // 32
    attn = (_BATCH, heads * 81, windows, windows)
    return Call(name, outlook, [(_BATCH, channels, side, side), attn], (heads, 3, 2, 1, True))


def _deformable(name: str, fused: bool, tasks: int = 4, deterministic: bool = False) -> Call:
    """Maps of three sizes for each task, and 16 points for each map."""
    maps = [size for size in ((53, 70), (27, 35), (14, 18)) for _ in range(tasks)]
    pixels, queries = sum(h * w for h, w in maps), tasks * 53 * 70
    value, points = (1, pixels, 4, 70), (1, queries, 4, len(maps), 16)
    places = (*points, 2)
    shapes = (
        [value, (1, queries, len(maps), 2), places, points] if fused else [value, places, points]
    )
    flat = [side for size in maps for side in size]
    module = deformable_fused if fused else deformable
    return Call(name, module, shapes, (flat, "border"), deterministic)


# Each kernel is here. These are compiled for all GPUs.
CALLS = [
    _elsa("ELSA-Swin-T, stage 1, logits given", 96, 56, 3, "add"),
    _projected("ELSA-Swin-T, stage 1", 96, 56, 64),
    _neighborhood("Swin-T with sliding windows, stage 1", 96, 56),
    _qna("QnA-ViT-T, stage 1", 64, 56),
    _outlook("VOLO-D1, stage 1", 192, 28),
    _deformable("ITSA, locations", fused=False),
    _deformable("ITSA, offsets", fused=True),
    _deformable("ITSA, offsets, deterministic", fused=True, deterministic=True),
]
# Channels and sides of the maps in Swin-T's stages.
_SWIN_T = {1: (96, 56), 2: (192, 28), 3: (384, 14)}
_GHOST_HEADS = {"both ghost heads": "mul add", "factors alone": "mul", "no ghost head": ""}
# The other constants of the same kernels in published models, each set once. These are compiled for
# one GPU.
VARIANTS = [
    _projected("ELSA-Swin-T, stage 2", 192, 28, 128),
    _projected("ELSA-Swin-T, stage 3", 384, 14, 256),
    _projected("ELSA-Swin-B, stage 3", 512, 14, 352),
    _projected("ELSA-VOLO-D1, stage 1", 192, 28, 128, "mul add", kernel=5),
    _projected("ELSA-VOLO-D4, stage 1", 384, 28, 256, "mul add", kernel=5),
    *(
        _projected(f"ELSA-Swin-T, {name}, stage {n}", *size, 32 * 2**n, ghost)
        for name, ghost in _GHOST_HEADS.items()
        for n, size in _SWIN_T.items()
    ),
    _elsa("Swin-T with Hadamard attention or SASA, stage 1", 96, 56, 3),
    _neighborhood("Swin-T with sliding windows, no mask, stage 1", 96, 56, masked=False),
    _elsa("QnA-ViT-T with SASA, stage 1", 64, 56, 2, kernel=3),
    _neighborhood("QnA-ViT-T with SASA, scores, stage 1", 64, 56, kernel=3),
    *(_ddf(f"Swin-T with DDF, stage {n}", *size) for n, size in _SWIN_T.items()),
    *(
        _elsa(f"I-DWNet-{arch}, stage {n}", channels * 2**n // 2, 112 // 2**n, 32, softmax=False)
        for arch, channels in (("T", 96), ("B", 128))
        for n in (1, 2, 3, 4)
    ),
    _qna("QnA-ViT-T, stage 1 down", 128, 56, stride=2),
    *(
        _qna(f"QnA-ViT-T, {name}, stage 1{place}", channels, 56, stride=stride, **constants)
        for name, constants in {
            "1 query": dict(queries=1),
            "3 queries": dict(queries=3),
            "4 queries": dict(queries=4),
            "7x7": dict(kernel=7),
            "heads of 16 channels": dict(per_head=16),
            "heads of 32 channels": dict(per_head=32),
        }.items()
        for place, channels, stride in (("", 64, 1), (" down", 128, 2))
    ),
    _qna("Swin-T with QnA, stage 1", 96, 56, kernel=7, per_head=32),
    _qna("QnA autoencoder, down", 64, 112, queries=1, stride=2, tap_weight=False),
    _qna("QnA autoencoder, up", 64, 56, queries=4, summed=False, tap_weight=False),
    _deformable("ITSA with five tasks, offsets", fused=True, tasks=5),
]

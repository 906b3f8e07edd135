"""The calls of the published models at 224x224, for tensors that hold no numbers.

Each is the forward and the backward pass of one operator in Triton. Maps are channels-last in
memory, as the layers pass them on, except where a layer passes others on.
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
        channels_last: whether maps have the channels of a pixel side by side in memory.
    """

    name: str
    module: ModuleType
    shapes: Sequence[tuple[int, ...] | None]
    settings: tuple
    deterministic: bool = False
    channels_last: bool = True

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
        layout = torch.channels_last if is_map and self.channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def _ghost_heads(kind: str, channels: int, kernel: int) -> list[tuple[int, ...] | None]:
    """Return the shapes of the two ghost heads. ``kind`` names the ones that exist."""
    table = (channels, kernel, kernel)
    return [table if name in kind else None for name in ("mul", "add")]


def _elsa(
    name: str, channels: int, side: int, heads: int, ghost: str = "",
    softmax: bool = True, channels_last: bool = True,
) -> Call:  # fmt: skip
    size = (side, side)
    maps = [(_BATCH, channels, *size), (_BATCH, heads * 49, *size)]
    shapes = [*maps, *_ghost_heads(ghost, channels, 7)]
    return Call(name, elsa, shapes, (7, 1, softmax), channels_last=channels_last)


def _projected(
    name: str, channels: int, side: int, dims: int, ghost: str = "add", kernel: int = 7
) -> Call:
    logits, size = channels // 32 * kernel**2, (side, side)
    maps = [(_BATCH, channels, *size), (_BATCH, dims, *size)]
    tables = _ghost_heads(ghost, channels, kernel)
    return Call(name, projected, [*maps, (logits, dims), (logits,), *tables], (kernel, 1))


def _neighborhood(name: str, channels: int, side: int) -> Call:
    size = (_BATCH, channels, side, side)
    return Call(name, neighborhood, [size, size], (channels // 32, 7, 1, True))


def _qna(name: str, channels: int, side: int, queries: int = 2) -> Call:
    scores, size = queries * channels // 8, (side, side)
    maps = [(_BATCH, channels, *size), (_BATCH, scores, *size)]
    tables = [(scores, 3, 3), (scores, 3, 3)]
    return Call(name, qna, [*maps, *tables], (queries, 3, 1, 1, True))


def _outlook(name: str, channels: int, side: int) -> Call:
    windows, heads = (side + 1) // 2, channels // 32
    attn = (_BATCH, heads * 81, windows, windows)
    return Call(name, outlook, [(_BATCH, channels, side, side), attn], (heads, 3, 2, 1, True))


def _deformable(name: str, fused: bool, deterministic: bool = False) -> Call:
    """Four tasks with maps of three sizes, and 16 points for each."""
    maps = [size for size in ((53, 70), (27, 35), (14, 18)) for _ in range(4)]
    pixels, queries = sum(h * w for h, w in maps), 4 * 53 * 70
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
# Other layouts and constants of the same kernels. These are compiled for one GPU.
VARIANTS = [
    _projected("ELSA-Swin-B, stage 3", 512, 14, 352),
    _projected("ELSA-VOLO-D1, stage 1", 192, 28, 128, "mul add", kernel=5),
    _elsa("I-DWNet-T, stage 1", 96, 56, 32, softmax=False, channels_last=False),
    _qna("QnA-ViT-T, 3 queries, stage 1", 64, 56, queries=3),
]

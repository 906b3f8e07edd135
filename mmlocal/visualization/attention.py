"""Collection of the local attention of a running model, and maps of it to draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers import HasGhostHead, HasLocalAttention, HasQueryPlaces, HasWindowAttention

# Shifted windows hide tokens by an offset of -100 to the logits, which leaves a weight of 1e-44.
_NO_WEIGHT = 1e-20


def sliding_taps(
    size: int, windows: int, kernel_size: int, stride: int, padding: int, dilation: int = 1
) -> Tensor:
    """Compute which rows each window of a sliding kernel holds; or columns, in the same way.

    Args:
        size: number of rows of the map.
        windows: number of windows.
        kernel_size: height of the windows, in taps.
        stride: distance between windows, in tokens.
        padding: number of tokens by which windows stick out of the map.
        dilation: distance between taps, in tokens.

    Returns:
        ``(windows, kernel_size)``, int64; -1 outside the map.
    """
    starts = torch.arange(windows) * stride - padding
    rows = starts[:, None] + torch.arange(kernel_size) * dilation
    return rows.masked_fill((rows < 0) | (rows >= size), -1)


def tile_kernels(attn: Tensor, window_size: tuple[int, int] | None = None) -> Tensor:
    """Lay the attention kernels of all windows side by side, without overlap.

    Args:
        attn: ``(..., taps, H, W)``, any dtype; taps in row-major order.
        window_size: height ``h`` and width ``w`` of a window, in taps; ``None`` for a square.

    Returns:
        ``(..., H * h, W * w)``.

    Raises:
        ValueError: the number of taps is not a square number, or does not fit ``window_size``.
    """
    taps = attn.shape[-3]
    if window_size is None:
        window_size = (math.isqrt(taps), math.isqrt(taps))
        if math.prod(window_size) != taps:
            raise ValueError(f"attn must have a square number of taps, got {taps}")
    if math.prod(window_size) != taps:
        raise ValueError(f"window_size must have {taps} taps, got {window_size}")
    return attn.unflatten(-3, window_size).movedim((-2, -1), (-4, -2)).flatten(-4, -3).flatten(-2)


def token_size(pixels: int, tokens: int) -> int:
    """Compute the width of a token of a map in pixels.

    A backbone that halves its maps rounds odd sizes up, so the last tokens may reach beyond the
    input. The width is therefore rounded up to a power of two.

    Args:
        pixels: width of the network's input, in pixels.
        tokens: width of the map, in tokens.
    """
    return 2 ** math.ceil(math.log2(max(pixels / tokens, 1)))


def enlarge(maps: Tensor, input_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Enlarge maps to the size of their image, by bilinear interpolation.

    Args:
        maps: ``(M, N, H, W)``, float.
        input_size: height and width of the network's input, in pixels. The input is the image,
            padded at the bottom and right.
        image_size: height and width of the image itself, in pixels.

    Returns:
        ``(M, N, *image_size)``. The last tokens of a map may reach beyond it.
    """
    size = [
        tokens * token_size(pixels, tokens)
        for pixels, tokens in zip(input_size, maps.shape[2:], strict=True)
    ]
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return maps[..., : image_size[0], : image_size[1]]


@dataclass(frozen=True)
class LayerAttention:
    """Attention of one layer.

    Tap ``(a, b)`` of the window ``(i, j)`` is the token in row ``rows[i, a]`` and column
    ``columns[j, b]`` of the layer's input.

    Args:
        maps: ``(B, queries, heads, taps, H_out, W_out)``, float32 or float64, on the CPU. A layer
            without learned queries, such as ELSA, counts as one query.
        map_size: height and width of the layer's input, in tokens.
        rows: ``(H_out, window height)``, int64; -1 for taps outside the map and for hidden taps.
        columns: ``(W_out, window width)``, int64; -1 for taps outside the map and for hidden taps.
        layer: the layer itself, for its ghost head and the places of its queries; ``None`` for a
            layer that has neither.

    Raises:
        ValueError: the number of taps or windows of ``maps`` does not fit the other arguments.
    """

    maps: Tensor
    map_size: tuple[int, int]
    rows: Tensor
    columns: Tensor
    layer: nn.Module | None = None

    def __post_init__(self) -> None:
        taps = self.rows.shape[1] * self.columns.shape[1]
        expected = (taps, len(self.rows), len(self.columns))
        if self.maps.dim() != 6 or self.maps.shape[3:] != expected:
            raise ValueError(
                f"maps must be (B, queries, heads, {', '.join(map(str, expected))}) for "
                f"{expected[1]}x{expected[2]} windows of {self.rows.shape[1]}x"
                f"{self.columns.shape[1]} taps, got {tuple(self.maps.shape)}"
            )

    @property
    def query_places(self) -> str | None:
        """``"taps"`` or ``"cells"``, see :class:`~mmlocal.layers.HasQueryPlaces`, or ``None``."""
        return self.layer.query_places if isinstance(self.layer, HasQueryPlaces) else None

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self.maps.shape[2]

    @property
    def num_queries(self) -> int:
        """Number of queries that write to each position of the output."""
        return 1 if self.query_places else self.maps.shape[1]

    @property
    def window_size(self) -> tuple[int, int]:
        """Height and width of the windows, in taps."""
        return self.rows.shape[1], self.columns.shape[1]

    @property
    def has_ghost(self) -> bool:
        """Whether the layer makes a filter for each channel of its attention."""
        return isinstance(self.layer, HasGhostHead)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the layer's output, in tokens."""
        if self.query_places == "taps":
            return self.map_size
        scale = self._scale
        return len(self.rows) * scale, len(self.columns) * scale

    def received(self, mean: bool = False) -> Tensor:
        """Sum the attention that each token receives from all windows that hold it.

        Args:
            mean: whether to divide the sum by the sum that even attention would give. The result is
                the mean of the shares that windows give to the token, where 1 is an even share. It
                does not depend on how many windows hold the token, nor on how many tokens a window
                at the border has to choose from. Tokens in no window stay 0.

        Returns:
            ``(B, num_queries, num_heads, H, W)``, dtype of ``maps``. Queries that write to
            different places count together, each as a window of its own.
        """
        index = self._index()
        inside = index < math.prod(self.map_size)
        shares, readers = self.maps, torch.ones_like(inside[0], dtype=self.maps.dtype)
        if self.query_places == "taps":  # queries outside the map write nothing
            shares, readers = shares * inside[None, :, None, None], inside.sum(0) * readers
        elif self.query_places == "cells":
            readers = readers * shares.shape[1]
        if self.query_places:
            shares = shares.sum(1, True)
        sums = shares.new_zeros(*shares.shape[:3], math.prod(self.map_size) + 1)
        sums.index_add_(3, index.flatten(), shares.flatten(3))
        if mean:
            # Windows of some layers attend to padding, too.
            taps = (inside | (self.maps > _NO_WEIGHT).flatten(0, 2).any(0)).sum(0)
            even = (readers / taps).expand_as(index).flatten()
            total = torch.zeros_like(sums[0, 0, 0]).index_add_(0, index.flatten(), even)
            sums /= total.masked_fill(total == 0, 1)
        return sums[..., :-1].unflatten(3, self.map_size)

    def of_pixel(
        self,
        y: int,
        x: int,
        *,
        head: int | None = None,
        query: int | None = None,
        ghost: bool = False,
        image: int = 0,
    ) -> Tensor:
        """Compute with which weights one position of the output reads the layer's input.

        Args:
            y: row of the position, less than the height of ``output_size``.
            x: column of the position, less than the width of ``output_size``.
            head: one head; ``None`` for the mean of all heads.
            query: one query, less than ``num_queries``; ``None`` for the mean of all queries.
            ghost: whether to give the filter after the ghost head, as the mean over the channels
                of the head or of all heads.
            image: index of the image in the batch.

        Returns:
            ``(H, W)`` of the layer's input, dtype of ``maps``; 0 where the position reads nothing.

        Raises:
            ValueError: the position, head, query or image does not exist, or the layer has no
                ghost head.
        """
        height, width = self.output_size
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f"(y, x) must be in a map of {height}x{width}, got ({y}, {x})")
        numbers = dict(head=(head, self.num_heads), query=(query, self.num_queries))
        for name, (value, count) in (numbers | dict(image=(image, len(self.maps)))).items():
            if value is not None and not 0 <= value < count:
                raise ValueError(f"{name} must be from 0 to {count - 1}, got {value}")
        if ghost and not self.has_ghost:
            raise ValueError("ghost=True needs a layer with a ghost head, such as ELSA")
        index = self._index()
        weights = self.maps.new_zeros(math.prod(self.map_size) + 1)
        for (i, j), writer in self._windows_of(y, x).items():
            which = query if writer is None else writer
            attn = self.maps[image, :, :, :, i, j]
            attn = attn.mean(0) if which is None else attn[which]
            attn = self._filters(attn, head) if ghost else attn
            attn = attn.mean(0) if head is None or ghost else attn[head]
            weights.index_add_(0, index[:, i, j], attn)
        return weights[:-1].unflatten(0, self.map_size)

    @property
    def _scale(self) -> int:
        """Width of the cell that a window fills, in tokens."""
        return math.isqrt(self.maps.shape[1]) if self.query_places == "cells" else 1

    def _index(self) -> Tensor:
        """Token that each tap reads, ``(taps, H_out, W_out)``; ``H * W`` for none."""
        height, width = self.map_size
        rows = self.rows.T[:, None, :, None]
        columns = self.columns.T[None, :, None, :]
        outside = (rows < 0) | (columns < 0)
        return (rows * width + columns).masked_fill(outside, height * width).flatten(0, 1)

    def _windows_of(self, y: int, x: int) -> dict[tuple[int, int], int | None]:
        """Windows that write to a position, each with the query that does; ``None`` for all."""
        if self.query_places != "taps":
            scale = self._scale
            writer = (y % scale) * scale + x % scale if self.query_places else None
            return {(y // scale, x // scale): writer}
        width = self.columns.shape[1]
        return {
            (i, j): a * width + b
            for i, a in (self.rows == y).nonzero().tolist()
            for j, b in (self.columns == x).nonzero().tolist()
        }

    def _filters(self, attn: Tensor, head: int | None) -> Tensor:
        """Filters ``(channels, taps)`` that the ghost head makes of ``(heads, taps)``."""
        assert isinstance(self.layer, HasGhostHead)
        width = self.layer.v_dims // self.num_heads
        first, last = (0, self.num_heads) if head is None else (head, head + 1)
        channels = range(first * width, last * width)
        return self.layer.ghost_filters(attn[..., None, None], channels)[..., 0, 0]


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers of a model that offer their local attention.

    Args:
        model: any model.

    Returns:
        Layers by name, each with the methods of :class:`~mmlocal.layers.HasLocalAttention` or
        :class:`~mmlocal.layers.HasWindowAttention`.
    """
    return dict(filter(lambda item: _has_attention(item[1]), model.named_modules()))


def _has_attention(layer: nn.Module) -> bool:
    return isinstance(layer, (HasLocalAttention, HasWindowAttention))


@contextmanager
def collect_attention(
    layers: Mapping[str, nn.Module],
) -> Iterator[dict[str, LayerAttention]]:
    """Collect the attention of layers while their model runs. Hooks exist only in the context.

    Args:
        layers: layers by name, as :func:`find_layers` returns them.

    Yields:
        A dict by the same names, which the layers fill. If a layer runs again, its new attention
        replaces the old one.
    """
    collected: dict[str, LayerAttention] = {}
    handles = []
    for name, layer in layers.items():

        def hook(layer: Any, args: tuple, kwargs: dict, output: Any, name: str = name) -> None:
            with torch.no_grad():
                collected[name] = _attention_of(layer, *args, **kwargs)

        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def _attention_of(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> LayerAttention:
    maps = layer.attention_maps(x, *args, **kwargs)
    if maps.dim() == 5:
        maps = maps.unsqueeze(1)
    size = (x.shape[1], x.shape[2])
    if isinstance(layer, HasLocalAttention):
        kernel = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        rows, columns = (
            sliding_taps(side, windows, *kernel)
            for side, windows in zip(size, maps.shape[4:], strict=True)
        )
    else:
        rows, columns = layer.attention_taps(*size)
    dtype = torch.promote_types(maps.dtype, torch.float32)
    return LayerAttention(maps.to("cpu", dtype), size, rows, columns, layer)

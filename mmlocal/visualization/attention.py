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

from mmlocal.layers import HasLocalAttention


def received(
    attn: Tensor,
    kernel_size: int,
    stride: int,
    padding: int,
    map_size: tuple[int, int],
    dilation: int = 1,
) -> Tensor:
    """Sum the attention that each token receives from all windows that hold it.

    Args:
        attn: ``(..., kernel_size**2, H_out, W_out)``, float; taps in row-major order.
        kernel_size: width of the windows, in taps.
        stride: distance between windows, in tokens.
        padding: number of tokens by which windows stick out of the map.
        map_size: height and width of the map, in tokens.
        dilation: distance between taps, in tokens.

    Returns:
        ``(..., H, W)``, dtype of ``attn``. Attention to taps outside the map is left out.

    Raises:
        RuntimeError: the number of taps or windows of ``attn`` does not fit the other arguments.
    """
    columns = attn.reshape(-1, attn.shape[-3], attn.shape[-2] * attn.shape[-1])
    sums = F.fold(columns, map_size, kernel_size, dilation=dilation, padding=padding, stride=stride)
    return sums.reshape(*attn.shape[:-3], *map_size)


def tile_kernels(attn: Tensor) -> Tensor:
    """Lay the ``k x k`` attention kernels of all windows side by side, without overlap.

    Args:
        attn: ``(..., k**2, H, W)``, any dtype; taps in row-major order.

    Returns:
        ``(..., H * k, W * k)``.

    Raises:
        ValueError: the number of taps is not a square number.
    """
    side = math.isqrt(attn.shape[-3])
    if side**2 != attn.shape[-3]:
        raise ValueError(f"attn must have a square number of taps, got {attn.shape[-3]}")
    return F.pixel_shuffle(attn, side).squeeze(-3)


def enlarge(maps: Tensor, input_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Enlarge maps to the size of their image, by bilinear interpolation.

    Args:
        maps: ``(M, N, H, W)``, float.
        input_size: height and width of the network's input, in pixels. The input is the image,
            padded at the bottom and right.
        image_size: height and width of the image itself, in pixels.

    Returns:
        ``(M, N, *image_size)``.

    Note:
        A backbone that halves its maps rounds odd sizes up, so the last tokens may reach beyond
        ``input_size``. The width of a token in pixels is therefore rounded up to a power of two.
    """
    size = [
        tokens * 2 ** math.ceil(math.log2(max(pixels / tokens, 1)))
        for pixels, tokens in zip(input_size, maps.shape[2:], strict=True)
    ]
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return maps[..., : image_size[0], : image_size[1]]


@dataclass(frozen=True)
class LayerAttention:
    """Attention of one layer.

    Args:
        maps: ``(B, queries, heads, kernel_size**2, H_out, W_out)``, float32 or float64, on the
            CPU. A layer without learned queries, such as ELSA, counts as one query.
        map_size: height and width of the layer's input, in tokens.
        kernel_size: width of the windows, in taps.
        stride: distance between windows, in tokens.
        padding: number of tokens by which windows stick out of the map.
        dilation: distance between taps, in tokens.
    """

    maps: Tensor
    map_size: tuple[int, int]
    kernel_size: int
    stride: int
    padding: int
    dilation: int

    def received(self) -> Tensor:
        """Sum the attention that each token receives: ``(B, queries, heads, H, W)``."""
        return received(
            self.maps, self.kernel_size, self.stride, self.padding, self.map_size, self.dilation
        )


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers of a model that offer their local attention.

    Args:
        model: any model.

    Returns:
        Layers by name, each with the methods of :class:`~mmlocal.layers.HasLocalAttention`.
    """
    return dict(filter(lambda item: isinstance(item[1], HasLocalAttention), model.named_modules()))


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


def _attention_of(layer: HasLocalAttention, x: Tensor, *args: Any, **kwargs: Any) -> LayerAttention:
    maps = layer.attention_maps(x, *args, **kwargs)
    if maps.dim() == 5:
        maps = maps.unsqueeze(1)
    return LayerAttention(
        maps.to("cpu", torch.promote_types(maps.dtype, torch.float32)),
        (x.shape[1], x.shape[2]),
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
    )

"""Attention in windows of a fixed size, which may be shifted by half a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, as_side, check_flag, check_map
from mmlocal.layers.local_attention import window_taps
from mmlocal.layers.mixers import register_mixer
from mmlocal.layers.window_msa import (
    WindowMSA,
    channels_as_maps,
    crop_map,
    maps_as_channels,
    window_partition,
    window_reverse,
)


def shift_mask(
    height: int,
    width: int,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:
    """Compute the logit offsets that keep the regions of a window apart.

    A region is a part of the map. The cyclic shift brings up to four regions, which do not touch in
    the map, into one window.

    Args:
        height: height of the padded map, in tokens; a multiple of the window's.
        width: width of the padded map, in tokens; a multiple of the window's.
        window_size: height and width of a window, in tokens.
        shift: rows and columns by which the map was shifted.
        device: device of the result.

    Returns:
        ``(windows, Wh * Ww, Wh * Ww)``, float32: 0 inside a region, -100 between regions.
    """

    def regions(size: int, window: int, step: int) -> Tensor:
        position = torch.arange(size, device=device)
        return (position >= size - window).long() + (position >= size - step).long()

    rows = regions(height, window_size[0], shift[0])
    cols = regions(width, window_size[1], shift[1])
    region = (3 * rows[:, None] + cols)[None, :, :, None]
    region = window_partition(region, window_size).squeeze(-1)
    return -100.0 * (region[:, :, None] != region[:, None, :]).float()


def fit_windows(
    height: int, width: int, window_size: int, shift: bool, fit_window: bool
) -> tuple[int, int]:
    """Compute the width of the windows of a map, and the tokens by which they are shifted.

    Args:
        height: height of the map, in tokens.
        width: width of the map, in tokens.
        window_size: width of a window, in tokens.
        shift: whether to shift the windows by ``window_size // 2``.
        fit_window: whether a map whose shorter side is at most ``window_size`` has windows as wide
            as that side, without a shift.

    Raises:
        ValueError: such a map is exported to ONNX with dynamic height and width.
    """
    if fit_window and min(height, width) <= window_size:
        if torch.onnx.is_in_onnx_export() and not isinstance(height, int):
            raise ValueError(
                f"fit_window=True makes windows as small as the map, so an ONNX graph of a map of "
                f"at most window_size={window_size} serves one size of images; export it without "
                "dynamic height and width, or build the model with fit_window=False"
            )
        return min(height, width), 0
    return window_size, window_size // 2 if shift else 0


def taps_of_windows(
    height: int, width: int, window_size: int, shift: bool, fit_window: bool
) -> tuple[Tensor, Tensor]:
    """Compute which tokens share a window of :func:`over_windows` with each token.

    Args:
        height: height of the map, in tokens.
        width: width of the map, in tokens.
        window_size: as in :func:`over_windows`.
        shift: as in :func:`over_windows`.
        fit_window: as in :func:`over_windows`.

    Returns:
        Rows and columns, as :class:`~mmlocal.layers.HasWindowAttention` describes them.
    """
    window, step = fit_windows(height, width, window_size, shift, fit_window)
    return window_taps(height, window, step), window_taps(width, window, step)


def over_windows(
    x: Tensor,
    window_size: int,
    shift: bool,
    fit_window: bool,
    attend: Callable[[Tensor, tuple[int, int], Tensor | None], Tensor],
) -> Tensor:
    """Attend within the windows of a map of any size.

    Args:
        x: ``(B, H, W, C)``. It is zero-padded at the bottom and right to a multiple of the window.
        window_size: width of a window, in tokens.
        shift: whether to shift the windows by ``window_size // 2``.
        fit_window: whether a map whose shorter side is at most ``window_size`` has windows as wide
            as that side, without a shift.
        attend: function of windows ``(B * windows, N, C)``, of their height and width, and of the
            result of :func:`shift_mask`, or ``None`` if there is no shift. It returns
            ``(B * windows, N, D)``.

    Returns:
        ``(B, H, W, D)``.
    """
    height, width = x.shape[1:3]
    window, step = fit_windows(height, width, window_size, shift, fit_window)
    size = (window, window)

    # Sums and products rather than remainders: torch.compile has to prove these sizes equal.
    padded_height = (height + window - 1) // window * window
    padded_width = (width + window - 1) // window * window
    x = F.pad(x, (0, 0, 0, padded_width - width, 0, padded_height - height))
    mask = None
    if step:
        x = x.roll((-step, -step), dims=(1, 2))
        mask = shift_mask(padded_height, padded_width, size, (step, step), x.device)
    x = attend(window_partition(x, size), size, mask)
    x = window_reverse(x, size, padded_height, padded_width)
    if step:
        x = x.roll((step, step), dims=(1, 2))
    return crop_map(x, height, width).contiguous()


@register_mixer
class WindowAttention(Unscripted, nn.Module):
    """Window attention on a map of any size, with windows that may be shifted by half a window.

    The map is zero-padded at the bottom and right to a multiple of the window. Tokens attend to
    padding as to any other token, as in the original implementation.

    Args:
        embed_dims: channels.
        num_heads: must divide ``embed_dims``.
        window_size: width of a window, in tokens; also as a pair of equal numbers.
        shift: whether to shift the windows by ``window_size // 2``.
        fit_window: whether a map whose shorter side is at most ``window_size`` has windows as wide
            as that side, without a shift.
        **kwargs: other arguments of :class:`~mmlocal.layers.WindowMSA`.

    Raises:
        ValueError: the window is not a square, or :class:`~mmlocal.layers.WindowMSA` refuses
            an argument.
        TypeError: an argument has another type.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        shift: bool = False,
        fit_window: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_flag(shift=shift, fit_window=fit_window)
        self.window_size = window_size = as_side("window_size", window_size)
        self.embed_dims = embed_dims
        self.shift = shift
        self.fit_window = fit_window
        self.w_msa = WindowMSA(embed_dims, num_heads, (window_size, window_size), **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        check_map(x, self.embed_dims)
        return over_windows(x, self.window_size, self.shift, self.fit_window, self.w_msa)

    def attention_taps(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Compute which tokens each token may read, as ``HasWindowAttention`` describes it."""
        return taps_of_windows(height, width, self.window_size, self.shift, self.fit_window)

    def attention_maps(self, x: Tensor) -> Tensor:
        """Compute how each token attends to the tokens of its window, to draw it.

        Args:
            x: ``(B, H, W, embed_dims)``.

        Returns:
            ``(B, num_heads, window**2, H, W)``, before dropout. Taps in the padding have their
            share. The taps of a token sum to 1.

        Raises:
            ValueError: ``x`` has another shape.
        """
        check_map(x, self.embed_dims)

        def attend(windows: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
            return maps_as_channels(self.w_msa.attention_maps(windows, size, mask))

        maps = over_windows(x, self.window_size, self.shift, self.fit_window, attend)
        return channels_as_maps(maps, self.w_msa.num_heads)

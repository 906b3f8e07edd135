"""Multi-head self-attention among the tokens of one window, with relative position bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_attention
from mmlocal.layers.checks import Unscripted, as_pair, check_flag, check_tensor
from mmlocal.layers.linear import Linear


def relative_position_index(window_size: tuple[int, int]) -> Tensor:
    """Compute the row of the bias table for each pair of positions in a window.

    Args:
        window_size: height and width ``(Wh, Ww)`` of the window, in tokens.

    Returns:
        ``(Wh, Ww, Wh, Ww)``, int64: query row and column, key row and column.
    """
    height, width = window_size
    dy = torch.arange(height)[:, None] - torch.arange(height)[None] + height - 1
    dx = torch.arange(width)[:, None] - torch.arange(width)[None] + width - 1
    return dy[:, None, :, None] * (2 * width - 1) + dx[None, :, None, :]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float, scale: float | None
) -> Tensor:
    """Compute what ``F.scaled_dot_product_attention`` does, by two products of matrices."""
    windows, heads, tokens, dims = q.shape
    bias = attn_mask.expand(windows, -1, -1, -1).reshape(-1, tokens, tokens)
    q, k, v = (x.reshape(-1, tokens, dims) for x in (q, k, v))
    scale = dims**-0.5 if scale is None else scale
    attn = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).softmax(dim=2)
    if dropout_p:
        attn = F.dropout(attn, dropout_p)
    return torch.bmm(attn, v).view(windows, heads, tokens, dims)


def window_partition(x: Tensor, window_size: tuple[int, int]) -> Tensor:
    """Cut a map into windows.

    Args:
        x: ``(B, H, W, C)``, with H and W multiples of the window.
        window_size: height and width ``(Wh, Ww)`` of a window, in tokens.

    Returns:
        ``(B * windows, Wh * Ww, C)``.
    """
    batch, height, width, dims = x.shape
    wh, ww = window_size
    x = x.view(batch, height // wh, wh, width // ww, ww, dims)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, wh * ww, dims)


def window_reverse(
    windows: Tensor, window_size: tuple[int, int], height: int, width: int
) -> Tensor:
    """Put the windows of :func:`window_partition` together again.

    Args:
        windows: ``(B * windows, Wh * Ww, C)``.
        window_size: height and width ``(Wh, Ww)`` of a window, in tokens.
        height: height of the map, in tokens.
        width: width of the map, in tokens.

    Returns:
        ``(B, height, width, C)``.
    """
    wh, ww = window_size
    x = windows.view(-1, height // wh, width // ww, wh, ww, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def crop_map(x: Tensor, height: int, width: int) -> Tensor:
    """Cut the padding off a map.

    Args:
        x: ``(B, H, W, C)``.
        height: height of the result, in tokens.
        width: width of the result, in tokens.

    Returns:
        ``(B, height, width, C)``.
    """
    if torch.compiler.is_compiling():
        # Later layers ask whether a slice is contiguous. The answer would limit a graph to maps
        # with padding, or to maps without. Padding by negative numbers makes a new tensor.
        return F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1]))
    return x[:, :height, :width]


def maps_as_channels(maps: Tensor) -> Tensor:
    """Turn maps ``(B * windows, heads, N, K)`` to windows ``(B * windows, N, heads * K)``."""
    return maps.transpose(1, 2).flatten(2)


def channels_as_maps(x: Tensor, num_heads: int) -> Tensor:
    """Turn a map ``(B, H, W, heads * K)`` to attention maps ``(B, heads, K, H, W)``."""
    return x.unflatten(3, (num_heads, -1)).permute(0, 3, 4, 1, 2)


class WindowMSA(Unscripted, nn.Module):
    """Self-attention ``softmax(q k^T * qk_scale + bias) v`` among the tokens of one window.

    Within queries, keys and values, the channels
    ``[n * embed_dims / num_heads, (n + 1) * embed_dims / num_heads)`` belong to head ``n``.

    Args:
        embed_dims: channels.
        num_heads: must divide ``embed_dims``.
        window_size: height and width of the largest window, in tokens; one number for both.
        qkv_bias: whether the projection to q, k, v has a bias.
        qk_scale: factor of q k^T; ``None`` for ``(embed_dims / num_heads) ** -0.5``.
        attn_drop_rate: dropout on the attention map.
        proj_drop_rate: dropout on the output.
        proj_bias: whether the projection of the output has a bias.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, a count or a side of the window is
            below 1, a rate is out of [0, 1], or a number is not finite.
        TypeError: an argument has another type.

    Source:
        Swin Transformer, Liu et al. 2021, eq. 4.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int | tuple[int, int],
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        proj_bias: bool = True,
    ) -> None:
        super().__init__()
        check_attention(embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, proj_drop_rate)
        check_flag(proj_bias=proj_bias)
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.window_size = as_pair("window_size", window_size)
        self.qk_scale = qk_scale
        self.attn_drop_rate = attn_drop_rate
        self.qkv = Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = Linear(embed_dims, embed_dims, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop_rate)

        wh, ww = self.window_size
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * wh - 1) * (2 * ww - 1), num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer(
            "relative_position_index", relative_position_index(self.window_size), persistent=False
        )

    def forward(
        self, x: Tensor, window_size: tuple[int, int] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attend within each window.

        Args:
            x: ``(B * windows, N, embed_dims)``, N = Wh * Ww tokens in row-major order.
            window_size: Wh and Ww of these windows, at most the constructor's ``window_size``;
                ``None`` for the constructor's.
            mask: ``(windows, N, N)`` or ``(windows, 1, N)``, added to the logits.

        Returns:
            ``(B * windows, N, embed_dims)``.

        Raises:
            ValueError: ``x`` has another shape, or ``window_size`` is too large.
        """
        q, k, v, bias = self._project(x, window_size, mask)
        dropout = self.attn_drop_rate if self.training else 0.0
        # PyTorch has no fused kernel for CPUs that differentiates the bias. What it calls instead
        # looks for tokens that may see no other, of which a map without a mask has none.
        written_out = (
            mask is None
            and bias.requires_grad
            and bias.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
        )
        attend = _attend if written_out else F.scaled_dot_product_attention
        out = attend(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.qk_scale)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(x.shape)))

    def attention_maps(
        self, x: Tensor, window_size: tuple[int, int] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Compute how the tokens of each window attend to each other, to draw it.

        Args:
            x: ``(B * windows, N, embed_dims)``, as in :meth:`forward`.
            window_size: as in :meth:`forward`.
            mask: as in :meth:`forward`.

        Returns:
            ``(B * windows, num_heads, N, N)``, before dropout: a row for each token that attends.
            Rows sum to 1.

        Raises:
            ValueError: ``x`` has another shape, or ``window_size`` is too large.
        """
        q, k, _, bias = self._project(x, window_size, mask)
        scale = q.shape[3] ** -0.5 if self.qk_scale is None else self.qk_scale
        return (q @ k.transpose(2, 3) * scale + bias).softmax(dim=3)

    def _project(
        self, x: Tensor, window_size: tuple[int, int] | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute q, k and v, ``(B * windows, num_heads, N, head_dims)``, and the logits' offset.

        The offset can be broadcast to ``(B * windows, num_heads, N, N)``.
        """
        check_tensor(x)
        wh, ww = self.window_size if window_size is None else window_size
        if wh > self.window_size[0] or ww > self.window_size[1]:
            raise ValueError(f"window_size must be at most {self.window_size}, got {(wh, ww)}")
        if x.dim() != 3 or x.shape[1] != wh * ww or x.shape[2] != self.embed_dims:
            raise ValueError(
                f"x must be (B * windows, {wh * ww}, embed_dims={self.embed_dims}) for windows of "
                f"{wh}x{ww}, got {tuple(x.shape)}"
            )
        batch, tokens, dims = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dims // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)

        index = self.relative_position_index[:wh, :ww, :wh, :ww].reshape(-1)
        bias = self.relative_position_bias_table.index_select(0, index)
        bias = bias.view(tokens, tokens, -1).permute(2, 0, 1)[None].to(q.dtype)
        if mask is not None:
            bias = (bias + mask[:, None].to(q.dtype)).repeat(batch // mask.shape[0], 1, 1, 1)
        return q, k, v, bias

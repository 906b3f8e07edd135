"""The unified local attention: one layer from depth-wise convolution to window attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_attention
from mmlocal.layers.checks import (
    Unscripted,
    as_side,
    check_choice,
    check_flag,
    check_int,
    check_map,
    check_number,
    is_sequence,
)
from mmlocal.layers.linear import Linear
from mmlocal.layers.mixers import register_mixer
from mmlocal.layers.unified_presets import PRESETS
from mmlocal.layers.unified_regions import NeighborhoodWeights, WindowWeights
from mmlocal.layers.unified_weights import NORMS, TERMS
from mmlocal.layers.window_attention import over_windows


@register_mixer
class UnifiedLocalAttention(Unscripted, nn.Module):
    """Local attention whose weights are any sum of four terms, under any of three normalisations.

    For a query at pixel ``p``, the keys at the pixels ``s`` of its region, and each head::

        out[p] = sum_s norm_s(q[p].k[s] + q[p].rk[s - p] + rq[s - p].k[s] + rb[s - p]) v[s]

    ``rk`` and ``rq`` are relative position embeddings, and ``rb`` is a relative position bias.
    The scale ``qk_scale`` multiplies the three products. A linear projection follows.

    Args:
        embed_dims: channels in and out.
        num_heads: from 1 to ``embed_dims``, and a divisor of it. The preset ``dwconv`` ignores it
            and makes each channel a head.
        preset: name in :mod:`mmlocal.layers.unified_presets`, such as ``"lsa"``, ``"dwconv"``,
            ``"hadamard-n"`` or ``"net7-n"``. It gives the next four arguments where they are
            ``None``.
        terms: some of ``"qk"`` (``q.k``), ``"qr"`` (``q.rk``), ``"rk"`` (``rq.k``) and ``"rb"``
            (``rb``). The layer projects queries and keys only if a term needs them.
        norm: ``"softmax"``; ``"filter"``, which is :func:`~mmlocal.layers.filter_norm.filter_norm`
            divided by the root of the number of taps; or ``"identity"``.
        region: ``"window"``, the window that the query is in, as in Swin Transformer; or
            ``"neighborhood"``, the window around the query.
        hadamard: whether ``q * k`` takes the place of ``q`` and of ``k``, as in eq. 7.
        window_size: width of a window, in tokens, for the region ``"window"``; ``None`` for 7.
        kernel_size: odd width of a neighbourhood, in taps, for the region ``"neighborhood"``;
            ``None`` for 7.
        dilation: distance between the taps of a neighbourhood, in tokens.
        shift: whether to shift windows by ``window_size // 2``. Neighbourhoods do not shift.
        fit_window: see :class:`~mmlocal.layers.WindowAttention`.
        qkv_bias: whether the projection to q, k, v has a bias.
        qk_scale: ``None`` for ``(embed_dims / num_heads) ** -0.5``.
        lam: exponent of the multiplicative ghost head; 0 for none.
        gamma: factor of the additive ghost head; 0 for none.
        ghost_ratio: maps that the ghost head makes of each head's map; ``None`` for one map per
            channel in neighbourhoods, and for 2 in windows.
        attn_drop_rate: dropout on the attention maps, before the ghost head.
        proj_drop_rate: dropout on the output.
        backend: name of a backend of the ops of neighbourhoods; ``None`` for the fastest.

    Raises:
        ValueError: unknown ``preset``, ``terms``, ``norm`` or ``region``; no terms; filter
            normalisation of one tap; even ``kernel_size``; ``num_heads`` that does not divide
            ``embed_dims``; ``ghost_ratio`` that does not divide the channels of a head;
            ``hadamard`` with the term ``"qk"`` or without queries and keys; a size of the other
            region; a count below 1; a rate out of [0, 1]; or a number that is not finite.
        TypeError: an argument has another type.

    Note:
        A window may be larger than the map. The map is then padded, or the window shrinks, as in
        :class:`~mmlocal.layers.WindowAttention`. Where shifted windows hold several parts of the
        map, all weights between the parts are 0, ghost head included. The tables of windows have
        the order of :class:`~mmlocal.layers.WindowMSA`, which is query minus key.

        Keys and values are 0 outside the map for neighbourhoods. The taps there keep their place in
        the normalisation, as in :class:`~mmlocal.layers.ELSA`.

        The memory of a neighbourhood is its weights, and its ghost head costs none. The term
        ``"rk"`` also has a map of them that is padded by the reach of the window,
        ``kernel_size // 2 * dilation`` on each side. With ``"rb"`` alone, the neighbourhood is a
        depth-wise convolution. Windows write out one map of
        ``window_size**4`` weights for each head, and for each map of the ghost head.

        Tables start as truncated normals. Their deviation is 0.02 for the softmax, and one over the
        root of the number of taps otherwise. This is our choice, as are the scale of the filter
        normalisation and ``ghost_ratio``.

        The preset ``hadamard-n`` is the Hadamard attention of eq. 7. The published models have
        another variant, :class:`~mmlocal.layers.ELSA`.

    Source:
        ELSA, Zhou et al. 2021, section 3, eq. 4; section 5, eq. 7 and 8.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        preset: str = "net7",
        terms: Sequence[str] | None = None,
        norm: str | None = None,
        region: str | None = None,
        hadamard: bool | None = None,
        window_size: int | tuple[int, int] | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        dilation: int = 1,
        shift: bool = False,
        fit_window: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        lam: float = 0.0,
        gamma: float = 0.0,
        ghost_ratio: int | None = None,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_choice(tuple(PRESETS), preset=preset)
        chosen = PRESETS[preset]
        terms = chosen.terms if terms is None else terms
        norm = chosen.norm if norm is None else norm
        region = chosen.region if region is None else region
        hadamard = chosen.hadamard if hadamard is None else hadamard
        num_heads = embed_dims if chosen.channel_heads else num_heads
        if not is_sequence(terms):
            raise TypeError(f"terms must be a sequence of names, got {terms!r}")
        if not terms or not set(terms) <= set(TERMS):
            raise ValueError(f"terms must be some of {', '.join(TERMS)}, got {terms!r}")
        check_choice(NORMS, norm=norm)
        check_choice(("window", "neighborhood"), region=region)
        check_attention(embed_dims, num_heads, qkv_bias, qk_scale, attn_drop_rate, proj_drop_rate)
        check_flag(hadamard=hadamard, shift=shift, fit_window=fit_window)
        check_int(dilation=dilation)
        check_number(lam=lam, gamma=gamma)
        if ghost_ratio is not None:
            check_int(ghost_ratio=ghost_ratio)
        if hadamard and ("qk" in terms or not {"qr", "rk"} & set(terms)):
            raise ValueError(
                f"hadamard needs the terms 'qr' or 'rk', and cannot have 'qk', got terms={terms!r}"
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.hadamard = hadamard
        self.with_query = hadamard or not {"qk", "qr"}.isdisjoint(terms)
        self.with_key = hadamard or not {"qk", "rk"}.isdisjoint(terms)
        parts = 1 + self.with_query + self.with_key
        self.qkv = Linear(embed_dims, parts * embed_dims, bias=qkv_bias)
        self.proj = Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)

        if qk_scale is None:
            qk_scale = (embed_dims // num_heads) ** -0.5
        in_windows = region == "window"
        if ghost_ratio is None:
            ghost_ratio = 2 if in_windows else embed_dims // num_heads
        settings: dict[str, Any] = dict(embed_dims=embed_dims, num_heads=num_heads)
        settings.update(terms=terms, norm=norm, qk_scale=qk_scale)
        settings.update(lam=lam, gamma=gamma, ghost_ratio=ghost_ratio, drop_rate=attn_drop_rate)
        self.attend: WindowWeights | NeighborhoodWeights
        if in_windows:
            if kernel_size is not None or dilation != 1:
                raise ValueError(
                    "kernel_size and dilation need region='neighborhood', got 'window' with "
                    f"kernel_size={kernel_size} and dilation={dilation}; set window_size"
                )
            self.window_size = as_side("window_size", 7 if window_size is None else window_size)
            self.shift = shift
            self.fit_window = fit_window
            self.attend = WindowWeights(self.window_size, **settings)
        else:
            if window_size is not None:
                raise ValueError(
                    "window_size needs region='window', got 'neighborhood' with "
                    f"window_size={window_size}; set kernel_size"
                )
            size = as_side("kernel_size", 7 if kernel_size is None else kernel_size, odd=True)
            self.kernel_size = size
            self.stride = 1
            self.padding = size // 2 * dilation
            self.dilation = dilation
            self.attend = NeighborhoodWeights(size, dilation, backend, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape, or ``fit_window`` makes windows of one token, whose
                filters cannot be normalised.
        """
        check_map(x, self.embed_dims)
        if isinstance(self.attend, WindowWeights):
            return over_windows(x, self.window_size, self.shift, self.fit_window, self._in_windows)
        out = self.attend(*self._maps(x))
        return self.proj_drop(self.proj(out.permute(0, 2, 3, 1)))

    def attention_maps(self, x: Tensor) -> Tensor:
        """Compute how each pixel attends to its neighbours, to draw it.

        Args:
            x: ``(B, H, W, embed_dims)``.

        Returns:
            ``(B, num_heads, kernel_size**2, H, W)``, after the normalisation, before dropout and
            ghost head.

        Raises:
            ValueError: the region is ``"window"``, or ``x`` has another shape.
        """
        check_map(x, self.embed_dims)
        if isinstance(self.attend, WindowWeights):
            raise ValueError("attention_maps needs region='neighborhood', got 'window'")
        query, key, _ = self._maps(x)
        maps = self.attend.normalise(self.attend.scores(query, key), 2)
        return maps.expand(x.shape[0], -1, -1, *x.shape[1:3])

    def _in_windows(self, x: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        return self.proj_drop(self.proj(self.attend(*self._project(x), size, mask)))

    def _maps(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Compute queries, keys and values, each ``(B, embed_dims, H, W)``."""
        query, key, value = self._project(x)
        query, key = (None if part is None else part.permute(0, 3, 1, 2) for part in (query, key))
        return query, key, value.permute(0, 3, 1, 2)

    def _project(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Compute queries, keys and values of the shape of ``x``; ``None`` where of no use."""
        query = key = None
        *parts, value = self.qkv(x).chunk(1 + self.with_query + self.with_key, dim=-1)
        if self.with_query:
            query = parts[0]
        if self.with_key:
            key = parts[-1]
        if self.hadamard:
            query = key = parts[0] * parts[1]
        return query, key, value

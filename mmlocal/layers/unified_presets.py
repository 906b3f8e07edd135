"""Named settings of the unified local attention."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """Settings of :class:`~mmlocal.layers.UnifiedLocalAttention`, which describes them.

    Args:
        terms: terms of the weights.
        norm: normalisation of the weights.
        region: tokens that a query sees.
        hadamard: whether ``q * k`` takes the place of ``q`` and of ``k``.
        channel_heads: whether each channel is a head.
    """

    terms: tuple[str, ...]
    norm: str
    region: str
    hadamard: bool = False
    channel_heads: bool = False


_IN_WINDOWS = {
    "lsa": Preset(("qk", "rb"), "softmax", "window"),
    "net1": Preset(("rb",), "identity", "window"),
    "net2": Preset(("qr",), "identity", "window"),
    "net3": Preset(("qr",), "filter", "window"),
    "net4": Preset(("qr",), "softmax", "window"),
    "net5": Preset(("qr", "rb"), "softmax", "window"),
    "net6": Preset(("qr", "rk", "rb"), "softmax", "window"),
    "net7": Preset(("qk", "qr", "rk", "rb"), "softmax", "window"),
    "hadamard": Preset(("qr", "rk", "rb"), "softmax", "window", hadamard=True),
}

# "-n" puts the neighbourhood in place of the window.
PRESETS = {
    **_IN_WINDOWS,
    **{f"{name}-n": preset._replace(region="neighborhood") for name, preset in _IN_WINDOWS.items()},
    "dwconv": Preset(("rb",), "identity", "neighborhood", channel_heads=True),
}

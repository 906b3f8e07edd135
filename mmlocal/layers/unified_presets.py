"""Named settings of the unified local attention.

============  ================================  =============  =============  ===============
preset        terms                             normalisation  region         heads
============  ================================  =============  =============  ===============
``lsa``       q.k + rb                          softmax        window         given
``net1``      rb                                identity       window         given
``net2``      q.rk                              identity       window         given
``net3``      q.rk                              filter         window         given
``net4``      q.rk                              softmax        window         given
``net5``      q.rk + rb                         softmax        window         given
``net6``      q.rk + rq.k + rb                  softmax        window         given
``net7``      q.k + q.rk + rq.k + rb            softmax        window         given
``hadamard``  u.rk + rq.u + rb, with u = q * k  softmax        window         given
``dwconv``    rb                                identity       neighbourhood  one per channel
============  ================================  =============  =============  ===============

A name with ``-n`` has the neighbourhood in place of the window. ``lsa`` is Swin's attention,
``dwconv`` is a depth-wise convolution, and ``hadamard-n`` is eq. 7 of the paper.

Note:
    The paper's table of the seven networks was not available to us, so ``net1`` to ``net7`` are our
    reading. These facts were available: eq. 4; the terms of the depth-wise convolution (rb), of
    dynamic filters (q.rk) and of local attention (q.k); and that networks 5 to 7 show the effect of
    relative position embeddings. In our reading, each network differs from the one before in one
    term or in the normalisation.

Source:
    ELSA, Zhou et al. 2021, https://arxiv.org/abs/2112.12786, section 3, eq. 1 to 4; section 5,
    eq. 7.
"""

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

#: ``-n`` puts the neighbourhood in place of the window.
PRESETS = {
    **_IN_WINDOWS,
    **{f"{name}-n": preset._replace(region="neighborhood") for name, preset in _IN_WINDOWS.items()},
    "dwconv": Preset(("rb",), "identity", "neighborhood", channel_heads=True),
}

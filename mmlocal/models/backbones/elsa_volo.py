"""ELSA-VOLO: VOLO with ELSA in place of outlook attention.

Source:
    ELSA: Enhanced Local Self-Attention for Vision Transformer, Zhou et al. 2021,
    table 6, https://arxiv.org/abs/2112.12786. No code was published.
"""

from __future__ import annotations

from typing import Any

from mmlocal.layers import ELSA
from mmlocal.layers.checks import as_side
from mmlocal.models.backbones.volo import VOLO
from mmlocal.registry import MODELS


@MODELS.register_module()
class ELSAVOLO(VOLO):
    """ELSA-VOLO backbone: :class:`VOLO` whose first stage attends by :class:`~mmlocal.layers.ELSA`.

    Args:
        arch: ``'d1'`` to ``'d5'`` or a dict, as for :class:`VOLO`.
        kernel_size: odd width of ELSA's window, in taps; also as a pair of equal numbers.
        group_width: channels per group of ELSA's convolution.
        lam: exponent of the multiplicative ghost head; 0 for none.
        gamma: factor of the additive ghost head; 0 for none.
        drop_rate: dropout after the position embedding, in the MLPs and after attention.
        attn_drop_rate: dropout on attention maps.
        **kwargs: the other arguments of :class:`VOLO`, except ``mixer``.

    Raises:
        ValueError: ``kernel_size`` is even, or an argument has no good value for :class:`VOLO` or
            :class:`~mmlocal.layers.ELSA`.
        TypeError: an argument has another type.

    Note:
        The paper replaces all outlook attention, keeps the rest of VOLO and adjusts "several
        hyper-parameters" of the ELSA blocks, but does not say which. All values here are our
        choice: kernel 5, groups of 8 channels, both ghost heads, no bias in the projection to
        q, k, v, no scale on ``q * k``, VOLO's MLP ratio and heads, and no stochastic depth in the
        first stage. Most of them are defaults of the official ELSA block that ELSA-Swin overrides.
    """

    def __init__(
        self,
        arch: str | dict = "d1",
        kernel_size: int | tuple[int, int] = 5,
        group_width: int = 8,
        lam: float = 1.0,
        gamma: float = 1.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        mixer = dict(
            type=ELSA,
            kernel_size=as_side("kernel_size", kernel_size, odd=True),
            group_width=group_width,
            qkv_bias=False,
            qk_scale=1.0,
            lam=lam,
            gamma=gamma,
            attn_drop_rate=attn_drop_rate,
            proj_drop_rate=drop_rate,
        )
        super().__init__(
            arch, mixer=mixer, drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, **kwargs
        )

"""A mixer between two projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, check_flag, check_int, check_map
from mmlocal.layers.linear import Linear
from mmlocal.layers.mixers import build_mixer, register_mixer


@register_mixer
class ProjectedMixer(Unscripted, nn.Module):
    """``proj(mixer(value(x)))``: any mixer between two linear projections.

    Depth-wise operators, such as :class:`~mmlocal.layers.Involution` and
    :class:`~mmlocal.layers.DDF`, mix no channels. Attention projects its values and its output.
    With this layer, a depth-wise operator has both projections too. It can then replace attention
    in a transformer block, and only the spatial operator differs.

    Args:
        embed_dims: channels in and out.
        num_heads: heads of the mixer.
        mixer: config of the mixer, as in :func:`~mmlocal.layers.build_mixer`; ``None`` for
            ``dict(type="Involution")``.
        bias: whether the projections have a bias.
        shift: whether the block is one of the odd ones, see :func:`~mmlocal.layers.build_mixer`.
            A mixer with an argument ``shift`` gets it.

    Raises:
        ValueError: a count is below 1, or the mixer is unknown or refuses a value.
        TypeError: an argument has another type, or the mixer lacks an argument of its config.

    Source:
        The paper of ELSA, Zhou et al. 2021, puts such operators in place of Swin's attention. It
        does not say whether they keep both projections; here they do.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        mixer: Mapping[str, Any] | None = None,
        bias: bool = True,
        shift: bool = False,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads)
        check_flag(bias=bias, shift=shift)
        self.embed_dims = embed_dims
        self.value = Linear(embed_dims, embed_dims, bias=bias)
        self.mixer = build_mixer(
            dict(type="Involution") if mixer is None else mixer, embed_dims, num_heads, int(shift)
        )
        self.proj = Linear(embed_dims, embed_dims, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
        """
        check_map(x, self.embed_dims)
        return self.proj(self.mixer(self.value(x)))

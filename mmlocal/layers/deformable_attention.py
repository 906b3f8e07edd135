"""Deformable attention: each query reads a few positions of several maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.attention_checks import check_heads
from mmlocal.layers.checks import Unscripted, check_choice, check_int, check_number, check_tensor
from mmlocal.layers.gradient_scale import scale_gradient
from mmlocal.ops import deformable_attention_from_offsets

PADDING_MODES = ("border", "zeros")
GRAD_SCALE_SCOPES = ("offsets", "module")
OFFSET_INITS = ("radial", "zeros")


class DeformableAttention(Unscripted, nn.Module):
    """Attention of queries to learned positions around their reference points, in several maps.

    For a query ``q`` with the reference point ``r``, and each head::

        out = sum_{m, p} softmax_{m, p}(W q)[m, p] * value[m](r + (D q)[m, p] / size[m])

    ``m`` counts maps, and ``p`` points. ``D q`` are offsets in pixels of the map, and ``W q`` are
    logits. Bilinear interpolation reads the maps. Linear projections of the values and of the
    output surround the sum.

    Args:
        embed_dims: channels in and out.
        num_heads: must divide ``embed_dims``.
        num_maps: number of maps.
        num_points: positions per query, head and map.
        padding_mode: what positions outside a map read. ``"border"``: the nearest pixel of the
            border. ``"zeros"``: 0.
        offset_grad_scale: factor of the gradients of some parameters. It changes nothing else: not
            the output, and not the gradients of queries and values. An optimizer sees it before it
            clips gradients and adds weight decay.
        grad_scale_scope: the parameters whose gradients are scaled. ``"offsets"``: weight and bias
            of ``sampling_offsets``. ``"module"``: all parameters of this layer.
        offset_init: initial offsets, which depend on no query. ``"radial"`` as in Deformable DETR:
            each head has a direction of its own, and point ``k`` is ``k`` pixels away. ``"zeros"``:
            all points are at the reference point.
        backend: name of a backend of :func:`mmlocal.ops.deformable_attention_from_offsets`;
            ``None`` for the fastest.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, a count is below 1,
            ``offset_grad_scale`` is not positive and finite, or a name is unknown.
        TypeError: an argument has another type.

    Note:
        Parameters have the names, shapes and initial values of mmcv's
        ``MultiScaleDeformableAttention``, which calls the maps levels. It also adds dropout and a
        residual connection. This layer does not.

    Source:
        Deformable DETR, Zhu et al. 2021, eq. 3. ``"border"`` and ``offset_grad_scale`` come from
        Efficient Inter-Task Attention for Multitask Transformer Models, Bohn et al. 2025.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int = 4,
        num_maps: int = 12,
        num_points: int = 16,
        padding_mode: str = "border",
        offset_grad_scale: float = 1.0,
        grad_scale_scope: str = "offsets",
        offset_init: str = "radial",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_heads=num_heads)
        check_int(num_maps=num_maps, num_points=num_points)
        check_heads(embed_dims, num_heads)
        check_choice(PADDING_MODES, padding_mode=padding_mode)
        check_choice(GRAD_SCALE_SCOPES, grad_scale_scope=grad_scale_scope)
        check_choice(OFFSET_INITS, offset_init=offset_init)
        check_number(offset_grad_scale=offset_grad_scale)
        if offset_grad_scale <= 0:
            raise ValueError(f"offset_grad_scale must be positive, got {offset_grad_scale}")
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_maps = num_maps
        self.num_points = num_points
        self.padding_mode = padding_mode
        self.offset_grad_scale = offset_grad_scale
        self.grad_scale_scope = grad_scale_scope
        self.offset_init = offset_init
        self.backend = backend

        samples = num_heads * num_maps * num_points
        self.sampling_offsets = nn.Linear(embed_dims, 2 * samples)
        self.attention_weights = nn.Linear(embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values. All weights of the attention are equal."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=1)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)[:, None]
        offsets = (directions[:, None, None] * distances).expand(-1, self.num_maps, -1, -1)
        if self.offset_init == "zeros":
            offsets = torch.zeros_like(offsets)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend.

        Args:
            query: ``(B, Q, embed_dims)``.
            value: the pixels of all maps, one map after the other, ``(B, S, embed_dims)``.
            reference_points: ``(B or 1, Q, num_maps or 1, 2)``, x and y as fractions of the width
                and height.
            spatial_shapes: height and width of each map.

        Returns:
            ``(B, Q, embed_dims)``.

        Raises:
            ValueError: a tensor has another shape, or ``spatial_shapes`` does not fit.
            TypeError: ``query`` is not a tensor.
        """
        self._check("query", query, "Q")
        self._check("value", value, "S")
        value = self._linear(self.value_proj, value).unflatten(2, (self.num_heads, -1))
        offsets, logits = self._offsets_and_logits(query, spatial_shapes)
        out = deformable_attention_from_offsets(
            value,
            spatial_shapes,
            reference_points,
            offsets,
            logits,
            padding_mode=self.padding_mode,
            backend=self.backend,
        )
        return self._linear(self.output_proj, out)

    def sampled_positions(
        self,
        query: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Compute which positions the queries read, and with which weights, to draw them.

        Args:
            query: as in :meth:`forward`.
            reference_points: as in :meth:`forward`.
            spatial_shapes: as in :meth:`forward`.

        Returns:
            Positions ``(B, Q, num_heads, num_maps, num_points, 2)``, x and y as fractions of the
            width and height of each map, and weights ``(B, Q, num_heads, num_maps, num_points)``.
            With ``padding_mode="border"``, no position is outside its map.
        """
        self._check("query", query, "Q")
        offsets, logits = self._offsets_and_logits(query, spatial_shapes)
        sizes = offsets.new_tensor([(width, height) for height, width in spatial_shapes])[:, None]
        positions = reference_points[:, :, None, :, None] + offsets / sizes
        if self.padding_mode == "border":
            positions = torch.minimum(torch.maximum(positions, 0.5 / sizes), 1 - 0.5 / sizes)
        weights = logits.flatten(3).softmax(dim=3).view(logits.shape)
        return positions, weights

    def _offsets_and_logits(
        self, query: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        if len(spatial_shapes) != self.num_maps:
            raise ValueError(
                f"spatial_shapes must have num_maps={self.num_maps} entries, got "
                f"{len(spatial_shapes)}"
            )
        samples = (self.num_heads, self.num_maps, self.num_points)
        offsets = self._linear(self.sampling_offsets, query).unflatten(2, (*samples, 2))
        return offsets, self._linear(self.attention_weights, query).unflatten(2, samples)

    def _check(self, name: str, x: Tensor, tokens: str) -> None:
        check_tensor(x)
        if x.dim() != 3 or x.shape[2] != self.embed_dims:
            raise ValueError(
                f"{name} must be (B, {tokens}, embed_dims={self.embed_dims}), got {tuple(x.shape)}"
            )

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """Apply a projection, whose parameters get scaled gradients if they are in the scope."""
        in_scope = self.grad_scale_scope == "module" or layer is self.sampling_offsets
        if not in_scope or self.offset_grad_scale == 1 or not torch.is_grad_enabled():
            return layer(x)
        weight, bias = (
            scale_gradient(parameter, self.offset_grad_scale)
            for parameter in (layer.weight, layer.bias)
        )
        return F.linear(x, weight, bias)

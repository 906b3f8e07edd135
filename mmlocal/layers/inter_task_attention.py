"""Deformable self-attention among the pixels of several tasks (ITSA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted, check_flag, check_int, check_rate
from mmlocal.layers.deformable_attention import DeformableAttention
from mmlocal.layers.task_positions import cell_centres
from mmlocal.layers.task_pyramid import TaskPyramid

_PIXELS_AT_A_TIME = 4096


class InterTaskAttention(Unscripted, nn.Module):
    """One refinement step: each pixel of each task reads a few positions in the maps of all tasks.

    With a pyramid of each task's map, and deformable attention to all maps of all pyramids::

        y = norm(x + dropout(attention(x, pyramid(x))))
        out = y + ffn(y)

    Args:
        embed_dims: channels in and out.
        num_tasks: number of tasks.
        num_levels: levels of each pyramid, the map itself included.
        num_heads: must divide ``embed_dims``.
        num_points: positions per query, head and map.
        ffn_channels: hidden channels of the FFN; ``None`` for ``4 * embed_dims``.
        dropout: rate of the dropout on the attention's output, and of both dropouts of the FFN.
        padding_mode: what positions outside a map read, ``"border"`` or ``"zeros"``.
        offset_grad_scale: factor of the gradients of the offsets' parameters; see
            :class:`DeformableAttention`.
        grad_scale_scope: ``"offsets"`` or ``"module"``; see :class:`DeformableAttention`.
        downsample: ``"conv"`` or ``"conv1x1_pool"``; see :class:`TaskPyramid`.
        share_downsample: whether all tasks share the weights of their pyramids.
        level_source: ``"previous"`` or ``"first"``; see :class:`TaskPyramid`.
        map_order: ``"level"`` or ``"task"``; see :class:`TaskPyramid`.
        offset_init: ``"radial"`` or ``"zeros"``; see :class:`DeformableAttention`.
        ffn_norm: whether a layer norm follows the FFN.
        backend: name of a backend of :func:`mmlocal.ops.deformable_attention_from_offsets`;
            ``None`` for the fastest.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dims``, a count is below 1, ``dropout`` is
            out of [0, 1], ``offset_grad_scale`` is not positive, or a name is unknown.
        TypeError: an argument has another type.

    Note:
        The source gives the order of the parts, 4 heads, 16 points, 3 levels and the dropout of
        0.1. No source states whether the 16 points are per map, the order of the maps, or the
        channels and dropouts of the FFN. The defaults are choices. With them, one step costs what
        the source reports.

    Source:
        Efficient Inter-Task Attention for Multitask Transformer Models, Bohn et al. 2025.
    """

    def __init__(
        self,
        embed_dims: int,
        num_tasks: int,
        num_levels: int = 3,
        num_heads: int = 4,
        num_points: int = 16,
        ffn_channels: int | None = None,
        dropout: float = 0.1,
        padding_mode: str = "border",
        offset_grad_scale: float = 100.0,
        grad_scale_scope: str = "offsets",
        downsample: str = "conv",
        share_downsample: bool = False,
        level_source: str = "previous",
        map_order: str = "level",
        offset_init: str = "radial",
        ffn_norm: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_int(embed_dims=embed_dims, num_tasks=num_tasks, num_levels=num_levels)
        ffn_channels = 4 * embed_dims if ffn_channels is None else ffn_channels
        check_int(ffn_channels=ffn_channels)
        check_rate(dropout=dropout)
        check_flag(share_downsample=share_downsample, ffn_norm=ffn_norm)
        self.embed_dims = embed_dims
        self.num_tasks = num_tasks
        self.pyramid = TaskPyramid(
            embed_dims,
            num_tasks,
            num_levels,
            downsample,
            share=share_downsample,
            level_source=level_source,
            map_order=map_order,
        )
        self.attention = DeformableAttention(
            embed_dims,
            num_heads,
            num_maps=num_tasks * num_levels,
            num_points=num_points,
            padding_mode=padding_mode,
            offset_grad_scale=offset_grad_scale,
            grad_scale_scope=grad_scale_scope,
            offset_init=offset_init,
            backend=backend,
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dims)
        self.ffn = nn.Sequential(
            nn.Linear(embed_dims, ffn_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(ffn_channels, embed_dims),
            nn.Dropout(dropout),
        )
        self.ffn_norm = nn.LayerNorm(embed_dims) if ffn_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, num_tasks, H, W, embed_dims)``, with any H and W, to the same shape.

        Raises:
            ValueError: ``x`` has another shape.
            TypeError: ``x`` is not a tensor of floats.
        """
        return self.refine(x)[0]

    def refine(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, list[tuple[int, int]]]]:
        """Refine the maps, and return the pyramids that the pixels have read.

        Args:
            x: ``(B, num_tasks, H, W, embed_dims)``.

        Returns:
            The refined maps, of the shape of ``x``, and the output of :class:`TaskPyramid`.
        """
        value, shapes = pyramid = self.pyramid(x)
        query = x.flatten(1, 3)
        attended = self.attention(query, value, cell_centres(x), shapes)
        if x.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Parts of this size stay in the cache, and the FFN never writes its hidden map out.
            parts = zip(*(y.split(_PIXELS_AT_A_TIME, 1) for y in (query, attended)), strict=True)
            out = torch.cat([self._transform(*part) for part in parts], dim=1)
        else:
            out = self._transform(query, attended)
        return out.view(x.shape), pyramid

    def _transform(self, query: Tensor, attended: Tensor) -> Tensor:
        out = self.norm(query + self.dropout(attended))
        return self.ffn_norm(out + self.ffn(out))

    def sampled_positions(self, x: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Compute which positions each pixel reads, and with which weights, to draw them.

        Args:
            x: ``(B, num_tasks, H, W, embed_dims)``.

        Returns:
            Positions ``(B, num_tasks * H * W, num_heads, num_levels * num_tasks, num_points, 2)``
            and weights without the last dimension, as
            :meth:`DeformableAttention.sampled_positions` has them, and the height and width of each
            map. The maps of level 0 come first. Within a level, tasks keep their order.
        """
        _, shapes = self.pyramid(x)
        positions, weights = self.attention.sampled_positions(
            x.flatten(1, 3), cell_centres(x), shapes
        )
        if self.pyramid.map_order == "task":
            order = torch.arange(len(shapes)).view(self.num_tasks, -1).T.flatten()
            positions, weights = positions[:, :, :, order], weights[:, :, :, order]
            shapes = [shapes[index] for index in order.tolist()]
        return positions, weights, shapes

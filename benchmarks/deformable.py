"""Deformable attention of mmcv, and our own form that starts from projections."""

from __future__ import annotations

import importlib
from functools import partial

import torch

from benchmarks.contestants import Built, CannotRunError, Contestant, check_memory, op_tensors
from mmlocal.ops import deformable_attention_from_offsets
from mmlocal.ops.cases import Case, Make
from mmlocal.ops.deformable.analysis import spatial_shapes


def _mmcv(case: Case, make: Make) -> Built:
    try:
        module = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    except ImportError as error:
        raise CannotRunError(f"mmcv has no ops here: {error}") from error
    tensors = op_tensors(case, make)
    value, _, weights = tensors.values()
    # It holds all samples several times at once.
    check_memory(4 * weights.numel() * value.shape[3], value)
    function = module.multi_scale_deformable_attn_pytorch
    shapes = torch.tensor(spatial_shapes(case), device=value.device)
    names = ("sampling_locations", "attention_weights")
    return tensors, lambda value, **others: function(value, shapes, *(others[n] for n in names))


def _from_offsets(case: Case, make: Make) -> Built:
    value, locations, weights = op_tensors(case, make).values()
    shapes = spatial_shapes(case)
    sizes = value.new_tensor(shapes).flip(1)[:, None]
    with torch.no_grad():
        # Any points serve: the offsets lead from them to the locations of the plain form.
        points = value.new_full((1, locations.shape[1], 1, 2), 0.5)
        tensors = dict(
            value=value.detach(),
            sampling_offsets=(locations - 0.5) * sizes,
            attention_logits=weights.log(),
        )
    call = partial(
        deformable_attention_from_offsets,
        spatial_shapes=shapes,
        reference_points=points,
        padding_mode="border",
    )
    return {name: x.requires_grad_(value.requires_grad) for name, x in tensors.items()}, call


DEFORMABLE_PEERS = (
    Contestant(
        "mmcv",
        "mmcv's function in plain PyTorch, which its layer uses on CPUs; zeros outside",
        _mmcv,
        ("deformable",),
    ),
    Contestant(
        "from_offsets",
        "our form that starts from offsets and logits",
        _from_offsets,
        ("deformable",),
    ),
)

"""Series of calls in which one size grows: pixels, window, channels, tasks or images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contestants import make_tensors, op_function, op_tensors
from mmlocal.layers import InterTaskAttention, TaskInteraction
from mmlocal.libraries import LIBRARIES
from mmlocal.ops import OPS
from mmlocal.ops.backends import choose_backend
from mmlocal.ops.cases import Case
from mmlocal.registry import MODELS

MODES = ("inference", "training")
IMAGE = 224  # side of an image in pixels, where another size grows


@dataclass
class Subject:
    """A function to measure.

    Args:
        function: function without arguments. It returns tensors, also in nested sequences.
        leaves: tensors whose gradients training computes.
        held: bytes of the inputs.
    """

    function: Callable[[], Any]
    leaves: Sequence[Tensor]
    held: int

    def call(self, mode: str) -> Callable[[], object]:
        """Return the function to time. Training is forward, and backward from random gradients."""

        def inference() -> object:
            with torch.no_grad():
                return self.function()

        if mode == "inference":
            return inference
        cotangents = [torch.randn_like(x) for x in list_tensors(inference())]

        def training() -> object:
            outs = list_tensors(self.function())
            return outs, torch.autograd.grad(outs, self.leaves, cotangents)

        return training


def list_tensors(outs: Any) -> list[Tensor]:
    """List the tensors of nested sequences."""
    return [outs] if isinstance(outs, Tensor) else [x for out in outs for x in list_tensors(out)]


# Takes a size, a mode and a device.
Build = Callable[[int, str, torch.device], Subject]


@dataclass(frozen=True)
class Series:
    """One function in several sizes.

    Args:
        kind: ``"op"``, ``"step"`` or ``"backbone"``. All series of a kind and axis take turns.
        name: name of the function.
        axis: ``"pixels"``, ``"window"``, ``"channels"``, ``"tasks"`` or ``"images"``.
        values: the sizes: sides of a square map, image or window, or counts.
        build: makes the function of a size.
        largest: the largest size of each mode; a mode that is missing is not measured.
        powers: powers of the model of its cost, as for :func:`benchmarks.cost_fit.fit`.
    """

    kind: str
    name: str
    axis: str
    values: tuple[int, ...]
    build: Build
    largest: tuple[tuple[str, int], ...]
    powers: tuple[int, ...] = (0, 1)


def _series(
    kind: str, name: str, axis: str, values: Sequence[int], build: Build, **options: Any
) -> Series:
    largest = options.pop("largest", dict.fromkeys(MODES, max(values)))
    return Series(kind, name, axis, tuple(values), build, tuple(largest.items()), **options)


# ------------------------------------------------------------------------------------------ ops

_SIDES = (32, 64, 128, 256, 512)
_WINDOWS = (3, 5, 7, 9, 11, 13)
_CHANNELS = (32, 64, 128, 256, 512)
_BASE: dict[str, Case] = {
    "elsa": Case("elsa", "", 1, 64, 2, 128, 128, 7),
    "neighborhood": Case("neighborhood", "", 1, 64, 2, 128, 128, 7),
    "qna": Case("qna", "", 1, 64, 8, 128, 128, 7),
    "outlook": Case("outlook", "", 1, 192, 6, 64, 64, 3, stride=2),
    "deformable": Case("deformable", "", 1, 280, 4, 32, 32, 16, variant="4 tasks, 3 levels"),
}
# Sizes of the axes that differ from the ones above. For deformable attention, the window stands for
# the points that a query reads in each map.
_VALUES: dict[tuple[str, str], tuple[int, ...]] = {
    ("outlook", "window"): (3, 5, 7),
    ("outlook", "pixels"): (16, 32, 64, 128, 256),
    ("deformable", "pixels"): (16, 24, 32, 48, 64),
    ("deformable", "channels"): (64, 128, 256, 512),
}
_POINTS = (2, 4, 8, 16, 32)


def _case(op: str, axis: str, value: int) -> Case:
    base = _BASE[op]
    if axis == "pixels":
        return replace(base, height=value, width=value)
    if axis in ("window", "points"):
        return replace(base, kernel_size=value)
    if axis == "tasks":
        return replace(base, variant=f"{value} tasks, 3 levels")
    # Heads stay as wide as they are; ITSA has four heads of any width.
    width = value // 4 if op == "deformable" else base.channels // base.heads
    return replace(base, channels=value, heads=value // width)


def backend_of(op: str, device: torch.device) -> str:
    """Name the backend that an op takes on a device, in float32."""
    like = torch.empty(0, device=device)
    return choose_backend(op, OPS[op].backends, like, None).name


def _op(op: str, axis: str, value: int, mode: str, device: torch.device) -> Subject:
    case = _case(op, axis, value)
    tensors = op_tensors(case, make_tensors(device, torch.float32))
    function = partial(op_function(case, backend_of(op, device)), **tensors)
    leaves = list(tensors.values())
    return Subject(function, leaves, sum(x.nbytes for x in leaves))


def _op_series() -> list[Series]:
    made = []
    axes = dict(pixels=_SIDES, window=_WINDOWS, channels=_CHANNELS)
    for op in _BASE:
        for axis, usual in axes.items():
            if (op, axis) != ("deformable", "window"):
                values = _VALUES.get((op, axis), usual)
                # Each pixel of an outlook window has weights for the whole window.
                powers = (0, 1, 2) if (op, axis) == ("outlook", "window") else (0, 1)
                made.append(_series("op", op, axis, values, partial(_op, op, axis), powers=powers))
    # Each pixel of each task reads the maps of all tasks.
    made += [
        _series("op", "deformable", "points", _POINTS, partial(_op, "deformable", "points")),
        _series(
            "op", "deformable", "tasks", range(1, 6), partial(_op, "deformable", "tasks"),
            powers=(0, 1, 2),
        ),
    ]  # fmt: skip
    return made


# ---------------------------------------------------------------------------------------- steps


def _step(name: str, axis: str, value: int, mode: str, device: torch.device) -> Subject:
    """One layer that exchanges information among tasks, as in ``benchmarks.multitask``."""
    tasks, side = (value, 24) if axis == "tasks" else (4, value)
    channels = 280 if name == "itsa" else 256
    layer = InterTaskAttention(channels, tasks) if name == "itsa" else TaskInteraction(channels)
    layer.train(mode == "training").to(device)
    x = torch.randn(1, tasks, side, side, channels, device=device)
    return Subject(partial(layer, x), list(layer.parameters()), x.nbytes)


def _step_series() -> list[Series]:
    axes = dict(pixels=(12, 16, 24, 32, 40), tasks=(1, 2, 3, 4, 5))
    return [
        # ITSA reads a fixed number of points in each map.
        _series(
            "step", name, axis, values, partial(_step, name, axis),
            powers=(0, 1) if (name, axis) == ("itsa", "pixels") else (0, 1, 2),
        )
        for name in ("itsa", "demt")
        for axis, values in axes.items()
    ]  # fmt: skip


# ------------------------------------------------------------------------------------ backbones


def _elsa(dims: int, window: int) -> dict:
    heads = [dims // 32 * 2**i for i in range(4)]
    arch = dict(embed_dims=dims, depths=(2, 2, 6, 2), num_heads=heads, group_width=4)
    return dict(type="mmlocal.ELSASwin", arch=arch, kernel_size=window)


def _qna(dims: int, window: int) -> dict:
    arch = dict(
        embed_dims=dims,
        attn_depths=(0, 0, 4, 2),
        qna_depths=(2, 3, 2, 0),
        attn_heads=[dims // 32 * 2**i for i in range(4)],
        qna_heads=[dims // 8 * 2**i for i in range(4)],
        kernel_size=window,
    )
    return dict(type="mmlocal.QnAViT", arch=arch)


def _dwnet(dims: int, window: int) -> dict:
    arch = dict(embed_dims=dims, depths=(2, 2, 6, 2))
    return dict(type="mmlocal.DWNet", arch=arch, kernel_size=window)


def _volo(dims: int, window: int) -> dict:
    heads = [dims // 32] + [dims // 16] * 3
    arch = dict(embed_dims=dims, depths=(4, 4, 8, 2), num_heads=heads)
    mixer = dict(type="OutlookAttention", kernel_size=window, padding=window // 2)
    return dict(type="mmlocal.VOLO", arch=arch, mixer=mixer)


def _swin(dims: int, window: int) -> dict:
    LIBRARIES["mmpretrain"].require()
    heads = [dims // 32 * 2**i for i in range(4)]
    return dict(
        type="mmpretrain.SwinTransformer",
        arch=dict(embed_dims=dims, depths=[2, 2, 6, 2], num_heads=heads),
        window_size=window,
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,
    )


@dataclass(frozen=True)
class Backbone:
    """A backbone of the cost models.

    Args:
        label: name for readers.
        config: channels of the first stage and width of the window -> config.
        dims: published channels.
        window: published width of the window.
        square: whether part of its work grows with the square of the pixels.
    """

    label: str
    config: Callable[[int, int], dict]
    dims: int
    window: int
    square: bool = False


BACKBONES: dict[str, Backbone] = {
    "elsa_swin_tiny": Backbone("ELSA-Swin-T", _elsa, 96, 7),
    "qna_vit_tiny": Backbone("QnA-ViT-T", _qna, 64, 3),
    "dwnet_tiny": Backbone("DWNet-T", _dwnet, 96, 7),
    "volo_d1": Backbone("VOLO-D1", _volo, 192, 3, square=True),
    "swin_tiny": Backbone("Swin-T", _swin, 96, 7),
}


def build_backbone(name: str, dims: int | None = None, window: int | None = None) -> nn.Module:
    """Build a backbone with random weights.

    Args:
        name: name out of ``BACKBONES``.
        dims: channels of the first stage; ``None`` for the published number.
        window: width of the window; ``None`` for the published one.
    """
    found = BACKBONES[name]
    return MODELS.build(found.config(dims or found.dims, window or found.window))


_published = cache(build_backbone)


def _backbone(name: str, axis: str, value: int, mode: str, device: torch.device) -> Subject:
    images = value if axis == "images" else 1
    side = value if axis == "pixels" else IMAGE
    if axis in ("pixels", "images"):
        model = _published(name)  # one for all sizes
    else:
        model = build_backbone(name, **{"dims" if axis == "channels" else axis: value})
    model.train(mode == "training")
    model.to(device)
    image = torch.randn(images, 3, side, side, device=device)
    return Subject(partial(model, image), list(model.parameters()), image.nbytes)


def _backbone_series() -> list[Series]:
    axes: dict[str, tuple[int, ...]] = dict(
        pixels=(128, 224, 320, 448, 640, 896),
        window=(3, 5, 7, 11),
        channels=(32, 64, 96, 128),
        images=(1, 2, 4),
    )
    made = []
    for name, backbone in BACKBONES.items():
        for axis, values in axes.items():
            square = axis == "channels" or (axis == "pixels" and backbone.square)
            if name == "volo_d1" and axis == "window":
                values, square = (3, 5, 7), True
            largest = dict.fromkeys(MODES, max(values))
            if axis == "pixels":
                largest["training"] = 448
            if axis == "images":
                del largest["inference"]
            made.append(
                _series(
                    "backbone", name, axis, values, partial(_backbone, name, axis),
                    largest=largest, powers=(0, 1, 2) if square else (0, 1),
                )
            )  # fmt: skip
    return made


def all_series() -> list[Series]:
    """List all series of the cost models."""
    return [*_op_series(), *_step_series(), *_backbone_series()]


def size_of(axis: str, value: int) -> int:
    """The size that a cost is fitted to: the pixels of a square side, or a count itself.

    Args:
        axis: axis of a series.
        value: one of its values.
    """
    return value**2 if axis in ("pixels", "window") else value

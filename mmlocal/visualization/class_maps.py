"""Maps of the positions that speak for a class, of classifiers and segmentors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlocal.layers.class_attention import ClassAttention
from mmlocal.visualization.attention import enlarge
from mmlocal.visualization.figures import as_grey, colour_bar, grid, show_image, show_over

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ClassMaps:
    """The positions that speak for some classes, in one image.

    Args:
        classes: indices of the classes, the best one first.
        scores: probability of each class; for a segmentor, its share of the pixels.
        of_pixels: whether the scores are shares of the pixels.
        maps: ``(classes, H, W)``, float32, on the CPU: the part of the class score that each
            position of the last map gives. Negative positions speak against the class.
        attention: ``(blocks, H, W)``: for each class-attention block, the weight with which the
            class token reads each position, as the mean of the heads. There may be no blocks.
    """

    classes: list[int]
    scores: list[float]
    of_pixels: bool
    maps: Tensor
    attention: Tensor


def class_maps(model: nn.Module, inputs: Tensor, number: int = 3) -> ClassMaps:
    """Compute which positions of the last map of the backbone speak for the best classes.

    The map of a class is ``sum_c d score / d x[c] * x[c]`` over the channels of the last map ``x``.
    For a linear classifier behind global average pooling, this is exactly the class activation map
    of the features, and its sum is the logit without the bias. The score of a classifier is the
    logit of the class. The score of a segmentor is the sum of the class's logits over the pixels
    that it wins.

    Args:
        model: a classifier or segmentor, with ``backbone`` and ``forward(inputs, mode="tensor")``,
            in evaluation mode.
        inputs: ``(1, C, H, W)``, as the data preprocessor of the model gives it.
        number: number of classes, at most. A segmentor has only classes that win a pixel.

    Raises:
        ValueError: the model is no classifier or segmentor, or its backbone gives no map.

    Source:
        HiResCAM, Draelos and Carin 2020, https://arxiv.org/abs/2011.08891. Class activation maps,
        Zhou et al. 2016, and their sum over the pixels of a class, Vinogradova et al. 2020.
    """
    recorder = _Recorder(model)
    with torch.enable_grad(), recorder:
        logits = model(inputs.detach().requires_grad_(), mode="tensor")
        if not isinstance(logits, Tensor) or logits.dim() not in (2, 4):
            raise ValueError(
                "class maps need a classifier or a segmentor, whose output is one tensor of class "
                f"scores; {type(model).__name__} gives another output"
            )
        features = recorder.features()
        if logits.dim() == 2:
            shares = logits[0].detach().softmax(0)
            scores = logits[0]
        else:
            winner = logits[0].argmax(0)
            wins = [winner == index for index in range(logits.shape[1])]
            shares = torch.stack([win.float().mean() for win in wins])
            scores = torch.stack([(logits[0, index] * win).sum() for index, win in enumerate(wins)])
        best = shares.topk(min(number, len(shares)))
        chosen = [index for index, share in zip(best.indices.tolist(), best.values.tolist(),
                                                strict=True) if share > 0]  # fmt: skip
        maps = []
        for index in chosen:
            (gradient,) = torch.autograd.grad(scores[index], features, retain_graph=True)
            maps.append((gradient * features)[0].sum(recorder.channels))
    size = maps[0].shape
    attention = [item[0, :, 1:].mean(0).view(size) for item in recorder.attention]
    return ClassMaps(
        chosen,
        [float(shares[index]) for index in chosen],
        logits.dim() == 4,
        torch.stack(maps).detach().float().cpu(),
        torch.stack(attention).float().cpu() if attention else torch.empty(0, *size),
    )


class _Recorder:
    """Records the last map of a backbone, and the class attention, while the model runs.

    The last map is the backbone's last output. If this is a pair of a map and a class token, it is
    the output of the last stage, from which both come.

    Attributes:
        attention: the attention of each class-attention block.
        channels: dimension of one image's last map that holds the channels, after :meth:`features`.
    """

    def __init__(self, model: nn.Module) -> None:
        backbone = getattr(model, "backbone", None)
        heads = (getattr(model, name, None) for name in ("head", "decode_head"))
        if not isinstance(backbone, nn.Module) or not any(isinstance(x, nn.Module) for x in heads):
            raise ValueError(
                "class maps need a classifier or a segmentor, with a backbone and a head; "
                f"{type(model).__name__} is none"
            )
        self.backbone = backbone
        self.attention: list[Tensor] = []
        self.channels = 0
        self._output: Any = None
        self._stage: Any = None
        self._handles: list[Any] = []

    def __enter__(self) -> _Recorder:
        hook = self.backbone.register_forward_hook
        self._handles.append(hook(lambda _, args, output: setattr(self, "_output", output)))
        stages = getattr(self.backbone, "stages", None)
        if isinstance(stages, nn.ModuleList) and len(stages):
            hook = stages[-1].register_forward_hook
            self._handles.append(hook(lambda _, args, output: setattr(self, "_stage", output)))
        for module in self.backbone.modules():
            if isinstance(module, ClassAttention):
                self._handles.append(module.register_forward_hook(self._record))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _record(self, layer: Any, args: tuple, output: Any) -> None:
        with torch.no_grad():
            self.attention.append(layer.attention_maps(*args))

    def features(self) -> Tensor:
        """The last map: ``(1, C, H, W)``, or ``(1, H, W, C)`` if it comes from a stage."""
        last = self._output[-1] if isinstance(self._output, (tuple, list)) else self._output
        self.channels = 0
        if isinstance(last, (tuple, list)) and self._stage is not None:
            last = self._stage[0] if isinstance(self._stage, tuple) else self._stage
            self.channels = 2
        if not isinstance(last, Tensor) or last.dim() != 4:
            raise ValueError(
                f"class maps need a backbone whose last output is a map (B, C, H, W); "
                f"{type(self.backbone).__name__} gives none"
            )
        return last


def draw_class_maps(
    maps: ClassMaps,
    names: Sequence[str] | None,
    title: str,
    image: np.ndarray,
    input_size: tuple[int, int],
) -> Figure:
    """Draw the positions that speak for classes over an image.

    Args:
        maps: the positions.
        names: names of all classes; ``None`` for their numbers.
        title: title of the whole figure.
        image: ``(h, w, 3)`` uint8 in RGB.
        input_size: height and width in pixels of the network's input: the image, padded at the
            bottom and right.

    Returns:
        A matplotlib figure, to save.
    """
    number, blocks = len(maps.classes), len(maps.attention)
    figure, axes = grid(1, 1 + number + blocks, image, title)
    show_image(axes[0, 0], image)
    axes[0, 0].set_title("image", fontsize=9)
    shown = enlarge(maps.maps[None], input_size, image.shape[:2])[0].numpy()
    drawn = show_over(axes[0, 1:], shown, as_grey(image), signed=True)
    for axis, index, score in zip(axes[0, 1:], maps.classes, maps.scores, strict=False):
        name = names[index] if names and index < len(names) else f"class {index}"
        share = f"{100 * score:.0f} %" if score >= 0.01 else "under 1 %"
        axis.set_title(f"{name}: {share}{' of pixels' * maps.of_pixels}", fontsize=9)
    colour_bar(figure, drawn, axes[0, : 1 + number], "← against    for →")
    if blocks:
        shown = enlarge(maps.attention[None], input_size, image.shape[:2])[0].numpy()
        drawn = show_over(axes[0, 1 + number :], shown, as_grey(image))
        for block, axis in enumerate(axes[0, 1 + number :]):
            axis.set_title(f"class token, block {block}", fontsize=9)
        colour_bar(figure, drawn, axes[0, 1 + number :], "attention")
    return figure

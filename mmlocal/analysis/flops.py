"""Parameters and multiply-accumulates of the models of all three tasks.

PyTorch's own counter (:mod:`torch.utils.flop_counter`) sees every operator that really runs, so
stock heads and matrix products inside attention need no handle each; only our operators do, and
importing this module registers them. Running on the ``meta`` device computes shapes and no values.

One multiply-accumulate (MAC) is what papers call one FLOP. Counted are convolutions, matrix
products and neighbourhood aggregation; not counted, as usual, are normalisation, activations,
softmax, additions, resizing, RoIAlign and non-maximum suppression.

MMEngine's own counter does not know our operators, nor PyTorch's fused attention, and there is no
way to tell all its counters. ``get_model_complexity_info`` leaves them out, behind a warning.
``FlopAnalyzer`` counts them with :data:`MMENGINE_HANDLES`::

    FlopAnalyzer(model, (image,)).set_op_handle(**MMENGINE_HANDLES).total()
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from mmengine.analysis.jit_handles import get_shape
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count

import mmlocal.ops  # noqa: F401  (defines the operators below)
from mmlocal import config_path, list_configs
from mmlocal.cli.building import build_errors
from mmlocal.libraries import LIBRARIES

# Height and width for which the papers state FLOPs of detectors and segmentors.
_SHAPES = {"mmdet": (800, 1280), "mmseg": (512, 2048)}


@register_flop_formula(torch.ops.mmlocal.elsa_attention)
def _elsa_attention_flops(
    value_shape, attn_shape, ghost_mul_shape, ghost_add_shape, kernel_size, *args, **kwargs
) -> int:
    """For each value and tap: one MAC for its weight, if a ghost head makes one, and one to add."""
    steps = 1 if ghost_mul_shape is None and ghost_add_shape is None else 2
    return 2 * steps * kernel_size**2 * prod(value_shape)


@register_flop_formula(torch.ops.mmlocal.elsa_attention_projected)
def _elsa_attention_projected_flops(
    value_shape,
    attn_shape,
    proj_weight_shape,
    proj_bias_shape,
    ghost_mul_shape,
    ghost_add_shape,
    kernel_size,
    *args,
    **kwargs,
) -> int:
    """As above, and the convolution: one MAC for each pixel and number of its weight."""
    op = _elsa_attention_flops(value_shape, None, ghost_mul_shape, ghost_add_shape, kernel_size)
    pixels = attn_shape[0] * prod(attn_shape[2:])
    return op + 2 * pixels * prod(proj_weight_shape)


@register_flop_formula(torch.ops.mmlocal.qna_attention)
def _qna_attention_flops(
    value_shape,
    scores_shape,
    rel_pos_shape,
    tap_weight_shape,
    num_queries,
    kernel_size,
    *args,
    out_shape,
    **kwargs,
) -> int:
    """For each output, tap and query: one MAC.

    That is the paper's depth-wise convolution of the exponentials times the values, whatever an
    implementation saves by adding the queries' weights first. The one of the exponentials alone,
    the sum below the softmax, is left out as softmax is everywhere.
    """
    pixels = prod(out_shape[-2:])
    return 2 * num_queries * kernel_size**2 * prod(value_shape[:2]) * pixels


def _mmengine_handle(formula: Callable[..., int]) -> Callable[[list, list], int]:
    """A formula of PyTorch's counter as a handle of MMEngine's, which gets values of a trace."""

    def handle(inputs: list, outputs: list) -> int:
        args = [
            get_shape(value) if value.isCompleteTensor() else value.toIValue() for value in inputs
        ]
        return formula(*args, out_val=get_shape(outputs[0])) // 2

    return handle


def _attention_flops(query_shape, key_shape, value_shape, *args, **kwargs) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


# For ``set_op_handle`` of MMEngine's ``FlopAnalyzer``, in multiply-accumulates, as it counts.
MMENGINE_HANDLES: dict[str, Callable[[list, list], int]] = {
    "mmlocal::elsa_attention": _mmengine_handle(_elsa_attention_flops),
    "mmlocal::elsa_attention_projected": _mmengine_handle(_elsa_attention_projected_flops),
    "mmlocal::qna_attention": _mmengine_handle(_qna_attention_flops),
    "aten::scaled_dot_product_attention": _mmengine_handle(_attention_flops),
}


def count_macs(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, int]:
    """Count the multiply-accumulates of one call, without gradients.

    Args:
        module: anything callable, in the mode (``eval()``) and on the device to count it in.
        *args: passed to ``module``.
        **kwargs: passed to ``module``.

    Returns:
        MACs by operator, such as ``{"aten.convolution": 1160871936, ...}``.
    """
    # The fused kernel for CPUs has no formula in PyTorch and would count as nothing.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*args, **kwargs)
    flops = counter.get_flop_counts().get("Global", {})
    return {str(operator): count // 2 for operator, count in flops.items()}


@dataclass(frozen=True)
class Complexity:
    """Size of a model, and its work on one image.

    Args:
        shape: height and width of the image in pixels.
        parameters: of the whole model, heads that only serve training included.
        macs: multiply-accumulates by operator.
    """

    shape: tuple[int, int]
    parameters: int
    macs: dict[str, int]

    @property
    def total_macs(self) -> int:
        return sum(self.macs.values())

    @property
    def local_macs(self) -> int:
        """MACs of the operators of mmlocal alone."""
        return sum(count for name, count in self.macs.items() if name.startswith("mmlocal."))


def model_complexity(
    cfg: Config, shape: tuple[int, int] | None = None, device: str = "meta"
) -> Complexity:
    """Build the model of a config, with random weights, and count one image at test time.

    Classifiers and segmentors are counted from the image to the logits, without auxiliary heads.
    Two-stage detectors are counted as in the papers: all heads see as many proposals, and the mask
    heads as many boxes, as ``test_cfg`` allows at most. Other detectors: from the image to the raw
    output of the head.

    Args:
        cfg: config of mmdet, mmseg or mmpretrain.
        shape: height and width of the image in pixels; ``None`` for the size that the papers state
            FLOPs for: 800x1280 (mmdet), 512x2048 (mmseg), that of the test pipeline (mmpretrain).
        device: ``"meta"`` computes no values; ``"cpu"`` or ``"cuda"`` for models that need some.

    Raises:
        RuntimeError: on ``"meta"``, a model whose shapes depend on values.
        UsageError: the model cannot be built; names the config key.
        ValueError: the backbone refuses the shape, or the config has none.
    """
    shape = shape or default_shape(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        with build_errors(cfg):
            model = _build(cfg, device)
        with torch.device(device):
            image = torch.zeros(1, _image_channels(cfg), *shape)
            macs = count_macs(_Inference(model, cfg), image)
    return Complexity(shape, sum(parameter.numel() for parameter in model.parameters()), macs)


def _image_channels(cfg: Config) -> int:
    """Channels of the image, as the backbone (or a model without one) is configured."""
    part = cfg.model.get("backbone") or cfg.model
    return part.get("in_channels") or part.get("in_chans") or 3


def _build(cfg: Config, device: str) -> nn.Module:
    try:
        with torch.device(device):  # on "meta", nothing is allocated or initialised
            model = MODELS.build(deepcopy(cfg.model))
    except RuntimeError:  # a constructor reads values, as those do that use torch.linspace
        model = MODELS.build(deepcopy(cfg.model))
    # The counter fails on a trainable tensor that is handed to a module, as learned queries are.
    return model.requires_grad_(False).eval().to(device)


def default_shape(cfg: Config) -> tuple[int, int]:
    """Height and width that the published figures are for; see :func:`model_complexity`."""
    if cfg.default_scope in _SHAPES:
        return _SHAPES[cfg.default_scope]
    for step in reversed(cfg.test_dataloader.dataset.pipeline):
        size = step.get("crop_size") or step.get("scale")
        if size:
            return (size, size) if isinstance(size, int) else tuple(reversed(size))
    raise ValueError("shape must be given: no transform of the test pipeline sets a size")


class _Inference(nn.Module):
    """A model as one function of an image."""

    def __init__(self, model: nn.Module, cfg: Config) -> None:
        super().__init__()
        self.model = model
        self.cfg = cfg

    def forward(self, image: torch.Tensor) -> None:
        if self.cfg.default_scope == "mmdet":
            self._detect(image)
        else:
            self.model(image, mode="tensor")

    def _detect(self, image: torch.Tensor) -> None:
        from mmdet.models.detectors import TwoStageDetector
        from mmdet.structures import DetDataSample

        if isinstance(self.model, TwoStageDetector):
            self._detect_in_two_stages(image)
            return
        size = tuple(image.shape[2:])
        keys = ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")
        sample = DetDataSample(metainfo=dict.fromkeys(keys, size) | dict(scale_factor=(1.0, 1.0)))
        self.model(image, [sample], mode="tensor")

    def _detect_in_two_stages(self, image: torch.Tensor) -> None:
        # The number of proposals and boxes of the real thing depends on the weights.
        test_cfg: ConfigDict = self.cfg.model.test_cfg
        features = self.model.extract_feat(image)
        self.model.rpn_head(features)
        roi_head = self.model.roi_head
        self._run_heads(
            image, roi_head.bbox_roi_extractor, roi_head.bbox_head, test_cfg.rpn.max_per_img
        )
        if roi_head.with_mask:
            self._run_heads(
                image, roi_head.mask_roi_extractor, roi_head.mask_head, test_cfg.rcnn.max_per_img
            )

    @staticmethod
    def _run_heads(
        image: torch.Tensor, extractors: nn.Module, heads: nn.Module, boxes: int
    ) -> None:
        """Run one head, or one for each stage of a cascade, on what its extractor would give."""
        cascade = isinstance(heads, nn.ModuleList)
        for extractor, head in zip(
            extractors if cascade else [extractors], heads if cascade else [heads], strict=True
        ):
            size = extractor.roi_layers[0].output_size
            head(image.new_zeros(boxes, extractor.out_channels, *size))


def published_table() -> str:
    """Table, in Markdown, of all configs that come with mmlocal, but those on generated data.

    Needs mmdet, mmseg and mmpretrain; takes no more memory than one model's shapes.
    """
    rows = [
        "| config | image | parameters | GFLOPs | of which local attention |",
        "|---|---|---|---|---|",
    ]
    for name in (name for library in LIBRARIES for name in list_configs(library)):
        if "shapes" in name.split("_"):
            continue
        found = model_complexity(Config.fromfile(config_path(name)))
        height, width = found.shape
        rows.append(
            f"| {name} | {height}x{width} | {found.parameters:,} | {found.total_macs / 1e9:.2f} "
            f"| {found.local_macs / 1e9:.2f} |"
        )
    return "\n".join(rows)

"""Parameters and multiply-accumulates of a model.

PyTorch's own counter (:mod:`torch.utils.flop_counter`) sees every operator that really runs, so
stock heads and matrix products inside attention need no formula of their own. Only the operators of
the ops do: each op brings its formulas, and :func:`register_formulas` tells PyTorch. On the
``meta`` device a model computes shapes and no values.

One multiply-accumulate (MAC) is what papers call one FLOP. Convolutions, matrix products and
neighbourhood aggregation count. As usual, normalisation, activations, softmax, additions, resizing,
RoIAlign and non-maximum suppression do not.

MMEngine's own counter knows neither our operators nor PyTorch's fused attention. Its function
``get_model_complexity_info`` leaves them out, behind a warning. Its ``FlopAnalyzer`` counts them
with :data:`MMENGINE_HANDLES`::

    FlopAnalyzer(model, (image,)).set_op_handle(**MMENGINE_HANDLES).total()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.analysis.jit_handles import get_shape
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count

from mmlocal.libraries import library_of
from mmlocal.ops import OPS

Handle = Callable[[list, list], int]

# Operators whose formulas PyTorch knows.
_registered: set[str] = set()


def flop_formulas() -> dict[str, Callable[..., int]]:
    """Formulas by operator, such as ``"mmlocal::elsa_attention"``, of all ops in ``OPS``."""
    return {
        operator: formula
        for op in OPS.values()
        for operator, formula in op.load_analysis().FLOPS.items()
    }


def register_formulas() -> None:
    """Tell PyTorch's counter about the ops. Importing this module does so, and so does each count.

    Call it where ``FlopCounterMode`` shall count an op that was registered later.
    """
    for operator, formula in flop_formulas().items():
        if operator not in _registered:
            namespace, name = operator.split("::")
            register_flop_formula(getattr(getattr(torch.ops, namespace), name))(formula)
            _registered.add(operator)


register_formulas()


def _attention_flops(
    query_shape: Sequence[int],
    key_shape: Sequence[int],
    value_shape: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


class _MMEngineHandles(Mapping[str, Handle]):
    """The formulas as handles of MMEngine's counter; an op that is registered later appears too."""

    @staticmethod
    def _formulas() -> dict[str, Callable[..., int]]:
        return flop_formulas() | {"aten::scaled_dot_product_attention": _attention_flops}

    def __getitem__(self, operator: str) -> Handle:
        formula = self._formulas()[operator]

        def handle(inputs: list, outputs: list) -> int:
            """Multiply-accumulates, from the values of a trace."""
            args = [get_shape(x) if x.isCompleteTensor() else x.toIValue() for x in inputs]
            return formula(*args, out_shape=get_shape(outputs[0])) // 2

        return handle

    def __iter__(self) -> Iterator[str]:
        return iter(self._formulas())

    def __len__(self) -> int:
        return len(self._formulas())


MMENGINE_HANDLES: Mapping[str, Handle] = _MMEngineHandles()
"""For ``set_op_handle`` of MMEngine's ``FlopAnalyzer``, which counts multiply-accumulates."""


def count_macs(module: Callable[..., object], *args: Any, **kwargs: Any) -> dict[str, int]:
    """Count the multiply-accumulates of one call, without gradients.

    Args:
        module: a module or function, in the mode (``eval()``) and on the device to count it in.
        *args: passed to ``module``.
        **kwargs: passed to ``module``.

    Returns:
        MACs by operator, such as ``{"aten.convolution": 1160871936, ...}``.
    """
    register_formulas()
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
        parameters: of the whole model, including heads that only serve training.
        macs: multiply-accumulates by operator.
    """

    shape: tuple[int, int]
    parameters: int
    macs: dict[str, int]

    @property
    def total_macs(self) -> int:
        """MACs of all operators."""
        return sum(self.macs.values())

    @property
    def local_macs(self) -> int:
        """MACs of the operators of the ops alone."""
        local = {operator.replace("::", ".") for operator in flop_formulas()}
        return sum(count for operator, count in self.macs.items() if operator in local)


def model_complexity(
    cfg: Config, shape: tuple[int, int] | None = None, device: str = "meta"
) -> Complexity:
    """Build the model of a config, with random weights, and count one image at test time.

    Classifiers and segmentors are counted from the image to the logits, without auxiliary heads.
    Two-stage detectors are counted as in the papers: all heads see as many proposals, and the mask
    heads as many boxes, as ``test_cfg`` allows at most. Other detectors are counted from the image
    to the raw output of the head.

    Args:
        cfg: config of a model.
        shape: height and width of the image in pixels; ``None`` for the size for which the papers
            state FLOPs: 800x1280 (mmdet), 512x2048 (mmseg), else the size of the test pipeline.
        device: ``"meta"`` computes no values; ``"cpu"`` or ``"cuda"`` for models that need some.

    Raises:
        RuntimeError: on ``"meta"``, a model whose shapes depend on values.
        ValueError: the backbone refuses the shape, or the config has none.
    """
    return count_model(build_model(cfg, device), cfg, shape)


def build_model(cfg: Config, device: str = "meta") -> nn.Module:
    """Build the model of a config, with random weights, for :func:`count_model`.

    Args:
        cfg: config of a model.
        device: as in :func:`model_complexity`.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        try:
            with torch.device(device):  # on "meta", nothing is allocated or initialised
                model = MODELS.build(deepcopy(cfg.model))
        except RuntimeError:  # some constructors read values, as after torch.linspace
            model = MODELS.build(deepcopy(cfg.model))
    # The counter fails on a trainable tensor that is handed to a module, as learned queries are.
    return model.requires_grad_(False).eval().to(device)


def count_model(model: nn.Module, cfg: Config, shape: tuple[int, int] | None = None) -> Complexity:
    """Count one image at test time; see :func:`model_complexity`.

    Args:
        model: of :func:`build_model`.
        cfg: the config of the model.
        shape: as in :func:`model_complexity`, which also says what this function raises.
    """
    library = library_of(cfg)
    shape = shape or library.default_shape(cfg)
    parameters = list(model.parameters())
    with (
        DefaultScope.overwrite_default_scope(cfg.get("default_scope")),
        torch.device(parameters[0].device),
    ):
        image = torch.zeros(1, _image_channels(cfg), *shape)
        macs = count_macs(library.inference(model, cfg), image)
    return Complexity(shape, sum(parameter.numel() for parameter in parameters), macs)


def _image_channels(cfg: Config) -> int:
    """Channels of the image, as the backbone (or a model without one) is configured."""
    part = cfg.model.get("backbone") or cfg.model
    return part.get("in_channels") or part.get("in_chans") or 3

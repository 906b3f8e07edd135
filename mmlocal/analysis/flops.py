"""Parameters and multiply-accumulates of a model.

PyTorch's own counter (:mod:`torch.utils.flop_counter`) sees every operator that really runs. It has
formulas for convolutions and matrix products, so only mmlocal's operators need more. Each op brings
its formulas, and :func:`register_formulas` passes them to PyTorch. On the ``meta`` device, a model
computes shapes and no values.

Papers call one multiply-accumulate (MAC) one FLOP. Convolutions, matrix products and the weighted
sums of local attention count. As usual, normalisation, activations, softmax, additions, resizing,
RoIAlign and non-maximum suppression do not count.

Some papers count otherwise: one FLOP for each product, one for each sum, and three for each element
of a softmax. :class:`ModuleWork` has both counts for parts of a model, such as one attention layer.

MMEngine's own counter knows neither our operators nor PyTorch's fused attention. Its function
``get_model_complexity_info`` leaves them out and warns. Its ``FlopAnalyzer`` counts them with
:data:`MMENGINE_HANDLES`::

    FlopAnalyzer(model, (image,)).set_op_handle(**MMENGINE_HANDLES).total()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from mmengine.analysis.jit_handles import get_shape
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count

from mmlocal.libraries import library_of
from mmlocal.ops import OPS

Handle = Callable[[list, list], int]

# Operators whose formulas PyTorch already has.
_registered: set[str] = set()


def _softmax_flops(shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Per element: one exponential, one sum, and one division."""
    return 3 * prod(shape)


# PyTorch's attention, when it is taken apart, has a softmax of its own.
_SOFTMAX_FLOPS = dict.fromkeys(
    (torch.ops.aten._softmax, torch.ops.aten._safe_softmax), _softmax_flops
)


def flop_formulas() -> dict[str, Callable[..., int]]:
    """Collect the formulas of all ops in ``OPS``, by operator.

    Returns:
        Functions for PyTorch's counter, by names such as ``"mmlocal::elsa_attention"``.
    """
    return {
        operator: formula
        for op in OPS.values()
        for operator, formula in op.load_analysis().FLOPS.items()
    }


def register_formulas() -> None:
    """Register the formulas of all ops with PyTorch's counter.

    The import of this module and each count call it. Call it yourself before ``FlopCounterMode``
    counts an op that was registered after the import.
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
    """The formulas as handles of MMEngine's counter, including ops that are registered later."""

    @staticmethod
    def _formulas() -> dict[str, Callable[..., int]]:
        return flop_formulas() | {"aten::scaled_dot_product_attention": _attention_flops}

    def __getitem__(self, operator: str) -> Handle:
        formula = self._formulas()[operator]

        def handle(inputs: list, outputs: list) -> int:
            """Compute the multiply-accumulates from the values of a trace."""
            args = [get_shape(x) if x.isCompleteTensor() else x.toIValue() for x in inputs]
            return formula(*args, out_shape=get_shape(outputs[0])) // 2

        return handle

    def __iter__(self) -> Iterator[str]:
        return iter(self._formulas())

    def __len__(self) -> int:
        return len(self._formulas())


MMENGINE_HANDLES: Mapping[str, Handle] = _MMEngineHandles()
"""Handles for ``set_op_handle`` of MMEngine's ``FlopAnalyzer``. They count multiply-accumulates."""


def count_macs(module: Callable[..., object], *args: Any, **kwargs: Any) -> dict[str, int]:
    """Count the multiply-accumulates of one call, without gradients.

    Args:
        module: a module or function. A module is counted in its current mode, on its device.
        *args: arguments of ``module``.
        **kwargs: keyword arguments of ``module``.

    Returns:
        MACs by operator, such as ``{"aten.convolution": 1160871936, ...}``.
    """
    return count_work(lambda: module(*args, **kwargs))[0]


@dataclass(frozen=True)
class ModuleWork:
    """Work of one module of a model in one call of the model.

    Args:
        macs: multiply-accumulates.
        flops: operations as some papers count them: one for each product, one for each sum, and
            three for each element of a softmax. The softmax inside mmlocal's operators does not
            count.
        calls: number of calls. A list of modules is never called, but its entries are.
    """

    macs: int
    flops: int
    calls: int


def count_work(
    call: Callable[[], object], modules: Mapping[str, nn.Module] | None = None
) -> tuple[dict[str, int], dict[str, ModuleWork]]:
    """Count one call, without gradients, and the work of some modules within it.

    Args:
        call: function without arguments, such as ``lambda: model(image)``.
        modules: modules that ``call`` runs, by name.

    Returns:
        MACs of the call by operator, and the work of each module, 0 if ``call`` does not run it.
    """
    register_formulas()
    # The fused kernel for CPUs has no formula in PyTorch and would count as nothing.
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=_SOFTMAX_FLOPS) as counter,
        ExitStack() as stack,
    ):
        found = {
            name: stack.enter_context(_watch(module, counter))
            for name, module in (modules or {}).items()
        }
        call()
    macs = {
        str(operator): count // 2
        for operator, count in _flops_of(counter).items()
        if operator not in _SOFTMAX_FLOPS
    }
    return macs, {name: _work(flops) for name, flops in found.items()}


def _flops_of(counter: FlopCounterMode) -> Counter:
    """FLOPs by operator, up to now."""
    return Counter(counter.get_flop_counts().get("Global", {}))


@contextmanager
def _watch(module: nn.Module, counter: FlopCounterMode) -> Iterator[list[Counter]]:
    """Collect the FLOPs of each call of a module, by operator.

    Segmentors call ``decode_head.forward``, which runs no hooks, so this wraps ``forward`` itself.
    """
    found: list[Counter] = []
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        before = _flops_of(counter)
        output = forward(*args, **kwargs)
        found.append(_flops_of(counter) - before)
        return output

    own = "forward" in vars(module)
    module.forward = watched
    try:
        yield found
    finally:
        if own:
            module.forward = forward
        else:
            delattr(module, "forward")


def _work(calls: list[Counter]) -> ModuleWork:
    flops = sum(calls, Counter())
    products = sum(n for operator, n in flops.items() if operator not in _SOFTMAX_FLOPS)
    return ModuleWork(products // 2, flops.total(), len(calls))


@dataclass(frozen=True)
class Complexity:
    """Size of a model, and its work on one image.

    Args:
        shape: height and width of the image in pixels.
        parameters: number of parameters of the whole model, including heads for training alone.
        macs: multiply-accumulates by operator.
        modules: work of some modules, by name.
    """

    shape: tuple[int, int]
    parameters: int
    macs: dict[str, int]
    modules: dict[str, ModuleWork] = field(default_factory=dict)

    @property
    def total_macs(self) -> int:
        """MACs of all operators."""
        return sum(self.macs.values())

    @property
    def local_macs(self) -> int:
        """MACs of mmlocal's operators alone."""
        local = {operator.replace("::", ".") for operator in flop_formulas()}
        return sum(count for operator, count in self.macs.items() if operator in local)


def model_complexity(
    cfg: Config, shape: tuple[int, int] | None = None, device: str = "meta"
) -> Complexity:
    """Build the model of a config, with random weights, and count one image at test time.

    The count of a classifier or segmentor goes from the image to the logits, without auxiliary
    heads. In a two-stage detector, as in the papers, all heads see the largest number of proposals
    that ``test_cfg`` allows, and the mask heads the largest number of boxes. The count of any other
    detector goes from the image to the raw output of the head.

    Args:
        cfg: config of a model.
        shape: height and width of the image in pixels. ``None`` for the size of the FLOPs in
            papers: 800x1280 for mmdet, 512x2048 for mmseg, else the size of the test pipeline.
        device: ``"meta"`` to compute no values. Models that need values take ``"cpu"`` or
            ``"cuda"``.

    Returns:
        Parameters and multiply-accumulates of the model.

    Raises:
        RuntimeError: on ``"meta"``, the shapes of the model depend on values.
        ValueError: the backbone refuses the shape, or ``shape`` is ``None`` and the test pipeline
            has no size.
    """
    return count_model(build_to_count(cfg, device), cfg, shape)


class _ValuesOfLinspace(TorchFunctionMode):
    """Keep ``torch.linspace`` on the CPU: many constructors read drop path rates from it."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def build_to_count(cfg: Config, device: str = "meta") -> nn.Module:
    """Build the model of a config, with random weights, for :func:`count_model`.

    Args:
        cfg: config of a model.
        device: device of the model. On ``"meta"``, it has shapes and no values.

    Returns:
        The model, in eval mode and without gradients.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        try:
            # On "meta", nothing is allocated or initialised.
            with torch.device(device), _ValuesOfLinspace():
                model = MODELS.build(deepcopy(cfg.model))
        except RuntimeError:  # some constructors read other values
            model = MODELS.build(deepcopy(cfg.model))
    # The counter fails on a trainable tensor that is an input of a module, such as learned queries.
    return model.requires_grad_(False).eval().to(device)


def count_model(
    model: nn.Module,
    cfg: Config,
    shape: tuple[int, int] | None = None,
    modules: Sequence[str] = (),
) -> Complexity:
    """Count one image at test time, in the way that :func:`model_complexity` describes.

    Args:
        model: the model, as :func:`build_to_count` returns it.
        cfg: the config of the model.
        shape: height and width of the image in pixels; ``None`` for the size of the FLOPs in
            papers.
        modules: names of modules of ``model`` to count on their own, such as
            ``"decode_head.interaction"``.

    Returns:
        Parameters and multiply-accumulates of the model.

    Raises:
        AttributeError: ``model`` has no module of this name.
        RuntimeError: on ``"meta"``, the shapes of the model depend on values.
        ValueError: the backbone refuses the shape, or ``shape`` is ``None`` and the test pipeline
            has no size.
    """
    watched = {name: model.get_submodule(name) for name in modules}
    library = library_of(cfg)
    shape = shape or library.default_shape(cfg)
    parameters = list(model.parameters())
    with (
        DefaultScope.overwrite_default_scope(cfg.get("default_scope")),
        torch.device(parameters[0].device),
    ):
        image = torch.zeros(1, _image_channels(cfg), *shape)
        inference = library.inference(model, cfg)
        macs, work = count_work(lambda: inference(image), watched)
    return Complexity(shape, sum(parameter.numel() for parameter in parameters), macs, work)


def _image_channels(cfg: Config) -> int:
    """Read the channels of the image from the config of the backbone, or of the whole model."""
    part = cfg.model.get("backbone") or cfg.model
    return part.get("in_channels") or part.get("in_chans") or 3

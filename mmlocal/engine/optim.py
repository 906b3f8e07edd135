"""An optimizer wrapper and a constructor that neither MMEngine nor its libraries have."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import Tensor, nn

from mmlocal.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Mixed precision on the CPU, in bfloat16. MMEngine's ``AmpOptimWrapper`` needs a GPU.

    Only ``model.backbone`` computes in bfloat16. Its outputs are float32 again, because mmcv's ops
    for the CPU (NMS, RoIAlign) do not support bfloat16. A model without a backbone computes in
    bfloat16 as a whole. bfloat16 has the range of float32, so the loss is not scaled. The arguments
    are the same as for ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context for the forward pass.

        Args:
            model: model, or its wrapper for distributed runs.
        """
        autocast = torch.autocast("cpu", torch.bfloat16)

        def enter(module: nn.Module, args: tuple) -> None:
            autocast.__enter__()

        def leave(module: nn.Module, args: tuple, outputs: Any) -> Any:
            autocast.__exit__(None, None, None)
            return _to_float32(outputs)

        backbone = getattr(getattr(model, "module", model), "backbone", None)
        if backbone is None:
            with super().optim_context(model), autocast:
                yield
            return
        hooks = [
            backbone.register_forward_pre_hook(enter),
            backbone.register_forward_hook(leave, always_call=True),
        ]
        try:
            with super().optim_context(model):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def _to_float32(outputs: Any) -> Any:
    """Convert the outputs of a backbone: tensors, also in tuples in the tuple of stages."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    return tuple(_to_float32(output) for output in outputs or ())  # None after an error


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning-rate decay for any model with a backbone that has ``get_layer_depth``.

    The learning rate of a parameter is multiplied by
    ``layer_decay_rate ** (num_layers - 1 - layer)``. Parameters outside the backbone count as its
    last layer.

    mmdet and mmseg have such constructors for a few backbones. mmpretrain's constructor needs
    ``get_layer_depth`` of the whole model, which detectors and segmentors do not have.

    Args:
        optim_wrapper_cfg: config of the optimizer wrapper, as for MMEngine's default constructor.
        paramwise_cfg: settings of MMEngine's default constructor, and ``layer_decay_rate``, a
            float in (0, 1].

    Raises:
        ValueError: ``layer_decay_rate`` is missing or not in (0, 1].
        TypeError: the model has no ``backbone`` with ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.rate = self.paramwise_cfg.get("layer_decay_rate")
        if not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise ValueError(f"paramwise_cfg.layer_decay_rate must be in (0, 1], got {self.rate!r}")

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs: Any
    ) -> None:
        """Append one group for each parameter of a module.

        Args:
            params: groups of the optimizer; this method appends to them.
            module: whole model in the first call, then its submodules.
            prefix: name of ``module`` in the model; empty in the first call.
            **kwargs: other arguments of MMEngine's default constructor.

        Raises:
            TypeError: the model has no ``backbone`` with ``get_layer_depth``.
        """
        super().add_params(params, module, prefix, **kwargs)
        if prefix:
            return
        backbone = getattr(module, "backbone", None)
        if backbone is None or not hasattr(backbone, "get_layer_depth"):
            raise TypeError(
                "layer-wise decay needs model.backbone.get_layer_depth, got a "
                f"{type(module).__name__} with the backbone {type(backbone).__name__}"
            )
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:
            (parameter,) = group["params"]
            layer, num_layers = backbone.get_layer_depth(names[parameter], "backbone.")
            lr = group.get("lr", self.base_lr)
            group["lr"] = lr * self.rate ** (num_layers - 1 - layer)

"""Attention ops: functions of tensors, one folder per op."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

OLDEST_TORCH = (2, 6)

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError(
        "mmlocal needs PyTorch 2.6 or newer, and none is installed: pip install torch torchvision"
    ) from error
if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
    raise ImportError(f"mmlocal needs PyTorch 2.6 or newer, and this is {torch.__version__}")

from mmlocal.ops.registry import OPS, Op, register_op  # noqa: E402

# Each folder here is an op. It registers itself.
for _, name, is_folder in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    if is_folder:
        importlib.import_module(name)

_FUNCTIONS = {f.__name__: f for op in OPS.values() for f in (op.function, *op.variants)}
globals().update(_FUNCTIONS)

__all__ = ["OPS", "Op", "register_op", *_FUNCTIONS]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., torch.Tensor]:
        """The functions that the loop above finds."""

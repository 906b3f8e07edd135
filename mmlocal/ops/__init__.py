"""Attention ops: functions of tensors, one folder per op."""

OLDEST_TORCH = (2, 6)

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError(
        "mmlocal needs PyTorch 2.6 or newer, and none is installed: pip install torch torchvision"
    ) from error
if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
    raise ImportError(f"mmlocal needs PyTorch 2.6 or newer, and this is {torch.__version__}")

from mmlocal.ops.elsa import elsa_attention  # noqa: E402
from mmlocal.ops.qna import qna_attention  # noqa: E402

__all__ = ["elsa_attention", "qna_attention"]

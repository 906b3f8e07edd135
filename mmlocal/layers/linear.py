"""The linear layer, computed by the faster of PyTorch's libraries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers.checks import Unscripted


def onednn_is_faster(capability: str, cpu_name: str) -> bool:
    """Tell whether oneDNN multiplies matrices faster than MKL on a CPU.

    PyTorch gives linear layers to MKL, and convolutions to oneDNN. On AMD's CPUs, MKL makes no use
    of AVX-512, so a 1x1 convolution takes half the time of a linear layer. With AVX2 alone, MKL is
    faster.

    Args:
        capability: the instructions that PyTorch uses, such as ``'AVX2'``.
        cpu_name: name of the CPU, empty if PyTorch does not know it.
    """
    return capability == "AVX512" and cpu_name.startswith("AMD")


# Older releases of PyTorch do not name the CPU.
_CPU: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
_ONEDNN = torch.backends.mkldnn.is_available() and onednn_is_faster(
    torch.backends.cpu.get_cpu_capability(), _CPU.get("cpu_name", "")
)
# An exported program may run elsewhere. PyTorch 2.6 knows exports to ONNX only.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.onnx.is_in_onnx_export)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.t() + bias`` as ``F.linear`` does, on some CPUs by a 1x1 convolution.

    The convolution is for maps and windows in float32, on CPUs of which :func:`onednn_is_faster`
    is true. It adds in another order than ``F.linear``, so the last digits may differ.

    Args:
        x: ``(..., in_features)``, float; ``(B, H, W, in_features)`` or ``(B, N, in_features)`` for
            the convolution.
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)``.

    Returns:
        ``(..., out_features)``.
    """
    if not _by_convolution(x, weight):
        return F.linear(x, weight, bias)
    # Convolutions read a permuted view as a channels-last tensor, so nothing is copied.
    # All windows are one row of pixels. PyTorch picks a library by the batch, which would limit a
    # compiled graph to some numbers of windows.
    pixels = x if x.dim() == 4 else x.reshape(1, 1, x.shape[0] * x.shape[1], x.shape[2])
    out = F.conv2d(pixels.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).contiguous().reshape(*x.shape[:-1], weight.shape[0])


def _by_convolution(x: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() in (3, 4)
        and not torch.is_autocast_enabled("cpu")
        # Other tensors, such as quantised weights, bring their own product.
        and type(weight) in (Tensor, nn.Parameter)
        and not _is_exporting()
        # A convolution needs pixels.
        and (torch.compiler.is_compiling() or x.numel() > 0)
    )


class Linear(Unscripted, nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        return linear(input, self.weight, self.bias)

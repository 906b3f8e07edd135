"""Linear layers and 1x1 convolutions, computed by the faster of PyTorch's libraries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
_MKL = torch.backends.mkl.is_available()
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
    if not (_ONEDNN and _may_choose(x, weight) and x.dim() in (3, 4)):
        return F.linear(x, weight, bias)
    # Convolutions read a permuted view as a channels-last tensor, so nothing is copied.
    # All windows are one row of pixels. PyTorch picks a library by the batch, which would limit a
    # compiled graph to some numbers of windows.
    pixels = x if x.dim() == 4 else x.reshape(1, 1, x.shape[0] * x.shape[1], x.shape[2])
    out = F.conv2d(pixels.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).contiguous().reshape(*x.shape[:-1], weight.shape[0])


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute a 1x1 convolution as ``F.conv2d`` does, on some CPUs by a linear layer.

    The linear layer is for channels-last maps in float32, on CPUs of which :func:`onednn_is_faster`
    is false. Gradients take a tenth less time there.

    Args:
        x: ``(B, in_channels, H, W)``, float.
        weight: ``(out_channels, in_channels, 1, 1)``.
        bias: ``(out_channels,)``.

    Returns:
        ``(B, out_channels, H, W)``.
    """
    if (
        _ONEDNN
        or not _MKL
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or not _may_choose(x, weight)
        or x.dim() != 4
        or x.is_contiguous()
        # This asks for a channels-last map in a form that vmap can answer.
        or not x.permute(0, 2, 3, 1).is_contiguous()
    ):
        return F.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _may_choose(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        # Other tensors, such as quantised weights, bring their own product.
        and type(weight) in (Tensor, nn.Parameter)
        # In torch.compile, PyTorch says that it exports.
        and (torch.compiler.is_dynamo_compiling() or not _is_exporting())
        # A convolution needs pixels.
        and (torch.compiler.is_compiling() or x.numel() > 0)
    )

"""Split the time of a call by kind of operation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Kind -> pattern for names of PyTorch's operators. The first match counts.
_KINDS = {
    "local attention": r"mmlocal(?!(::|_)grouped_conv2d)",
    "window attention": r"aten::(baddbmm|bmm|_softmax|_scaled_dot_product)",
    "linear": r"aten::(addmm|mm|linear|matmul|einsum)\b",
    "convolution": r"mmlocal(::|_)grouped_conv2d"
    r"|aten::(conv2d|_?convolution|mkldnn_convolution|cudnn_convolution)",
    "gelu": r"aten::gelu",
    "norm": r"aten::(native_|cudnn_)?(layer_norm|batch_norm)",
    "copy": r"aten::(copy_|_?to_copy|cat|clone|contiguous|index|_index_put|roll|im2col|fill_|zero)"
    r"|aten::constant_pad",
}
KINDS = (*_KINDS, "other")


def kind_of(name: str, shapes: Sequence[Sequence[int]] = ()) -> str:
    """The kind of an operator, one of ``KINDS``.

    A convolution with a kernel of 1x1 pixels is ``"linear"``. Most operators of the kind
    ``"other"`` work element by element.

    Args:
        name: name of the operator in the profiler.
        shapes: shapes of the inputs of the operator.
    """
    kind = next((kind for kind, pattern in _KINDS.items() if re.match(pattern, name)), "other")
    if kind == "convolution":
        weight = 2 if "backward" in name else 1
        if len(shapes) > weight and list(shapes[weight][2:]) == [1, 1]:
            return "linear"
    return kind


def time_by_kind(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Measure one call, and split its milliseconds by kind of operation.

    The time of an operator does not include the operators that it calls. On a GPU, it is the time
    of the kernels that the operator started.

    Args:
        call: function to measure.
        device: device that the function runs on.

    Returns:
        Kind, one of ``KINDS`` -> milliseconds.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as prof:
        call()
    times = dict.fromkeys(KINDS, 0.0)
    for event in prof.key_averages(group_by_input_shape=True):
        if event.device_type != DeviceType.CPU:
            continue
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        name = event.key.replace("GeneratedBackwardFor_", "")
        times[kind_of(name, event.input_shapes)] += spent / 1e3
    return times

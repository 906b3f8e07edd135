"""Time on the GPU by kernel, without the gaps in which the GPU waits for Python."""

from __future__ import annotations

from collections.abc import Callable

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def kernel_times(call: Callable[[], object]) -> dict[str, float]:
    """Measure one call by PyTorch's profiler.

    Args:
        call: function to measure. It must have run before.

    Returns:
        Name of a kernel -> milliseconds, the longest first. Empty on a CPU.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        call()
    times = {
        event.key: event.self_device_time_total / 1e3
        for event in prof.key_averages()
        if event.device_type == DeviceType.CUDA
    }
    return dict(sorted(times.items(), key=lambda item: -item[1]))

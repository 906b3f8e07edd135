"""Measure time and memory of functions."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from mmlocal.errors import UsageError

# Short calls are repeated until a sample takes this long, so that the clock is precise enough.
_SAMPLE_SECONDS = 5e-3
_MAX_REPEATS = 100
# A function that has run this long skips the remaining rounds, but gets _MIN_SAMPLES.
_MAX_SECONDS = 10.0
_MIN_SAMPLES = 3


def choose_device(name: str | None) -> torch.device:
    """Choose a device.

    Args:
        name: ``"cpu"`` or ``"cuda"``; ``None`` for the GPU if there is one.

    Raises:
        UsageError: ``name`` is ``"cuda"``, but there is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch sees no GPU (see mmlocal info), use --device cpu", "device")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _elapsed(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds per call."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def time_interleaved(
    calls: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Time several functions in turns, so that all of them see the same state of the machine.

    Args:
        calls: functions by name. Each of them must have run once before.
        device: device that the functions run on. On a GPU, its events measure the time.
        rounds: number of samples of each function. Each round starts with another function. A
            function that has run for 10 seconds gets no more samples, but at least three.

    Returns:
        Name -> seconds per call of each sample. A sample of a short function is the mean of as many
        calls as take 5 ms, at most 100.
    """
    repeats = {
        name: min(_MAX_REPEATS, math.ceil(_SAMPLE_SECONDS / _elapsed(call, 1, device)))
        for name, call in calls.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        shift = number % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            spent = sum(samples[name]) * repeats[name]
            if spent < _MAX_SECONDS or len(samples[name]) < _MIN_SAMPLES:
                samples[name].append(_elapsed(calls[name], repeats[name], device))
    return samples


def summarise(samples: Sequence[float]) -> dict[str, float]:
    """Summarise times.

    Args:
        samples: times in seconds, at least one.

    Returns:
        ``median_ms``, ``quartile1_ms``, ``quartile3_ms`` and ``min_ms`` in milliseconds, and
        ``samples``, the number of times.
    """
    quartiles = (
        statistics.quantiles(samples, n=4, method="inclusive")
        if len(samples) > 1
        else list(samples) * 3
    )
    names = ("quartile1_ms", "median_ms", "quartile3_ms")
    times = {name: 1e3 * value for name, value in zip(names, quartiles, strict=True)}
    return times | dict(min_ms=1e3 * min(samples), samples=len(samples))


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Measure the most memory in bytes that a call held at once, without the memory held before.

    The result of the call counts. On a CPU, the figure comes from the trace of PyTorch's profiler,
    which lists every allocation and release by PyTorch. It leaves out memory that other libraries
    allocate.

    Args:
        call: function to measure.
        device: device that the function runs on.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        prof.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    records = [event for event in events if event["name"] == "[memory]"]
    records.sort(key=lambda event: event["ts"])
    return max(itertools.accumulate((x["args"]["Bytes"] for x in records), initial=0))

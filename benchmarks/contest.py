"""Measure the contestants of one case in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.contestants import CannotRunError, Contestant, make_tensors
from benchmarks.report import MODES, first_line
from mmlocal.analysis.measure import peak_memory, summarise, time_interleaved
from mmlocal.ops.cases import Case

_COPY_BYTES = 2**27  # larger than any cache
_COPY = "copy"


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


@dataclass
class _Entry:
    """A contestant that has been built for a case."""

    name: str
    kind: str
    calls: dict[str, Callable[[], object]]
    # Mode -> bytes of all inputs and outputs, and bytes of the returned tensors.
    traffic: dict[str, int]
    returned: dict[str, int]


def _build(contestant: Contestant, kind: str, case: Case, device, dtype) -> _Entry:
    tensors, function = contestant.build(case, make_tensors(device, dtype))
    leaves = list(tensors.values())
    plain = {name: x.detach() for name, x in tensors.items()}

    def forward() -> Tensor:
        with torch.no_grad():
            return function(**plain)

    out = forward()
    cotangent = torch.randn_like(out)

    def training() -> tuple:
        out = function(**tensors)
        return out, torch.autograd.grad(out, leaves, cotangent)

    inputs, output = _bytes(leaves), _bytes([out])
    return _Entry(
        contestant.name,
        kind,
        dict(forward=forward, training=training),
        # Training also reads the gradient of the output, and writes one for each input.
        dict(forward=inputs + output, training=2 * (inputs + output)),
        dict(forward=output, training=inputs + output),
    )


def _forgiven(kind: str) -> tuple[type[Exception], ...]:
    """Errors that leave a contestant out: for a peer any error, for a backend lack of memory."""
    return (Exception,) if kind == "peer" else (CannotRunError, torch.OutOfMemoryError)


def measure_case(
    case: Case,
    contestants: Sequence[tuple[str, Contestant]],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
) -> list[dict]:
    """Measure time and memory of all contestants on one shape.

    Args:
        case: shape of the op.
        contestants: contestants, each after its kind, ``"backend"`` or ``"peer"``.
        dtype: data type of all tensors.
        device: device that all contestants run on.
        rounds: number of samples of each time, as for :func:`time_interleaved`.

    Returns:
        One dict per contestant and mode, with ``contestant``, ``kind`` and ``mode``. If the
        contestant cannot run, ``skipped`` holds the reason. Otherwise the dict holds the figures of
        :func:`summarise`, and:

        - ``extra_bytes``: peak memory in addition to inputs and outputs;
        - ``traffic_bytes``: size of inputs and outputs, each counted once;
        - ``copy_bytes_per_second``: rate of a large copy;
        - ``fraction_of_copy``: rate of the traffic, divided by the rate of the copy.
    """
    rows, entries = [], []
    for kind, contestant in contestants:
        try:
            entries.append(_build(contestant, kind, case, device, dtype))
        except _forgiven(kind) as error:
            row = dict(contestant=contestant.name, kind=kind, skipped=first_line(error))
            rows += [row | dict(mode=mode) for mode in MODES]
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    for mode in MODES:
        calls, extra = {}, {}
        for entry in entries:
            try:
                entry.calls[mode]()
                peak = peak_memory(entry.calls[mode], device)
            except _forgiven(entry.kind) as error:
                rows.append(
                    dict(
                        contestant=entry.name, kind=entry.kind, mode=mode, skipped=first_line(error)
                    )
                )
                continue
            extra[entry.name] = max(0, peak - entry.returned[mode])
            calls[entry.name] = entry.calls[mode]
        calls[_COPY] = lambda: target.copy_(source)
        samples = time_interleaved(calls, device, rounds)
        copy_rate = 2 * _COPY_BYTES / statistics.median(samples.pop(_COPY))
        for entry in entries:
            if entry.name in samples:
                rate = entry.traffic[mode] / statistics.median(samples[entry.name])
                rows.append(
                    dict(contestant=entry.name, kind=entry.kind, mode=mode)
                    | summarise(samples[entry.name])
                    | dict(
                        extra_bytes=extra[entry.name],
                        traffic_bytes=entry.traffic[mode],
                        fraction_of_copy=rate / copy_rate,
                        copy_bytes_per_second=copy_rate,
                    )
                )
    order = [contestant.name for _, contestant in contestants]
    return sorted(rows, key=lambda row: (order.index(row["contestant"]), MODES.index(row["mode"])))

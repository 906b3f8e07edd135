"""Measure how time and memory of ops and backbones grow, and write ``docs/cost_models.md``."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.cost_page import PAGE, page_with, picture_of
from benchmarks.cost_plots import draw_all
from benchmarks.cost_processes import check_processes
from benchmarks.cost_series import (
    BACKBONES,
    IMAGE,
    MODES,
    Series,
    all_series,
    backend_of,
    build_backbone,
)
from benchmarks.report import environment, write_json
from mmlocal.analysis import count_macs
from mmlocal.analysis.measure import choose_device, peak_memory, summarise, time_interleaved
from mmlocal.errors import UsageError
from mmlocal.files import write_whole
from mmlocal.ops import OPS

ROOT = Path(__file__).resolve().parents[1]
# Images whose work is counted, as multiples of 224. All maps are whole windows there.
_MULTIPLES = (1, 2, 3, 4, 6)


def measured_path(root: Path = ROOT, device: str = "cpu") -> Path:
    """Path of the measured figures.

    Args:
        root: root of the clone.
        device: ``"cpu"`` or ``"cuda"``.
    """
    return root / f"docs/benchmarks/cost_models_{device}.json"


def measure(
    series: Sequence[Series] | None = None,
    backbones: Sequence[str] = tuple(BACKBONES),
    rounds: int = 3,
    device: str | None = None,
    save: Callable[[dict], object] = lambda result: None,
) -> dict:
    """Measure all series, count the work of the backbones, and check two processes.

    Args:
        series: what to measure; ``None`` for :func:`benchmarks.cost_series.all_series`.
        backbones: names of backbones to count and to run in two processes.
        rounds: number of samples of each time, as for :func:`time_interleaved`.
        device: ``"cpu"`` or ``"cuda"``; ``None`` for the GPU if there is one.
        save: gets the result after each group of series, so that a run that stops keeps its points.

    Returns:
        ``hardware``, ``versions``, ``date``, ``settings`` and ``results``. A row of ``results`` has
        a ``kind``:

        - ``"op"``, ``"step"`` and ``"backbone"``: ``name``, ``axis``, ``value``, ``mode``, the
          figures of :func:`summarise`, and ``bytes``, the peak of the memory of inputs,
          activations, outputs and gradients;
        - ``"count"``: ``name``, ``value`` (side of a square image) and its ``macs``;
        - ``"processes"``: the figures of :func:`check_processes`.

    Raises:
        UsageError: ``rounds`` is below 1, MMPreTrain cannot run here, or there is no GPU.
    """
    if rounds < 1:
        raise UsageError(f"must be at least 1, got {rounds}", "rounds")
    target = choose_device(device)
    torch.manual_seed(0)
    backends = {op: backend_of(op, target) for op in OPS}
    result = environment(target) | dict(
        date=datetime.date.today().isoformat(),
        settings=dict(rounds=rounds, image=IMAGE, backends=backends),
        results=[],
    )
    groups: dict[tuple[str, str], list[Series]] = {}
    for one in all_series() if series is None else series:
        groups.setdefault((one.kind, one.axis), []).append(one)
    for group in groups.values():
        for mode in MODES:
            result["results"] += _measure_group(group, mode, target, rounds)
            save(result)
    for name in backbones:
        result["results"] += _count(name)
        result["results"].append(dict(kind="processes") | check_processes(name))
        save(result)
    return result


def _measure_group(
    group: Sequence[Series], mode: str, device: torch.device, rounds: int
) -> list[dict]:
    """Measure all sizes of some series in turns."""
    rows, calls = {}, {}
    for one in group:
        for value in one.values:
            if value <= dict(one.largest).get(mode, 0):
                key = f"{one.name} {value}"
                subject = one.build(value, mode, device)
                calls[key] = subject.call(mode)
                rows[key] = dict(
                    kind=one.kind, name=one.name, axis=one.axis, value=value, mode=mode,
                    powers=list(one.powers),
                    bytes=subject.held + peak_memory(calls[key], device),
                )  # fmt: skip
    for key, samples in time_interleaved(calls, device, rounds).items():
        rows[key] |= summarise(samples)
    return list(rows.values())


def _count(name: str) -> list[dict]:
    """Count the work of square images, on shapes alone."""
    # The counter fails on a trainable tensor that a module gets as input, such as learned queries.
    model = build_backbone(name).requires_grad_(False).to("meta")
    model.eval()  # a separate line, because eval() of mmpretrain's backbones returns None
    rows = []
    for side in (IMAGE * multiple for multiple in _MULTIPLES):
        macs = count_macs(model, torch.zeros(1, 3, side, side, device="meta"))
        rows.append(dict(kind="count", name=name, value=side, macs=sum(macs.values())))
    return rows


def read_measured(root: Path = ROOT, device: str = "cpu") -> dict | None:
    """Read the measured figures, if there are any.

    Args:
        root: root of the clone.
        device: ``"cpu"`` or ``"cuda"``.
    """
    path = measured_path(root, device)
    return json.loads(path.read_text()) if path.is_file() else None


def write_models(result: dict, root: Path = ROOT) -> list[Path]:
    """Write the tables into the page, and the pictures and the measured figures beside it.

    Args:
        result: result of :func:`measure`.
        root: root of the clone.

    Returns:
        The files that were written.
    """
    device = result["hardware"]["device"]
    data = measured_path(root, device)
    write_json(result, data)
    page = root / PAGE
    write_whole(page, page_with(page.read_text(), result))
    drawn = draw_all(result, lambda question: page.parent / picture_of(question, device))
    return [page, data, *drawn]

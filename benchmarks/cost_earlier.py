"""Exponents of time in earlier measurements, on other machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cost_fit import slope

FOLDER = Path(__file__).resolve().parents[1] / "docs/benchmarks"
# Files of benchmark_ops.py with the axis that grows, and files of benchmark_multitask.py.
_OPS = {"ops_resolution_cpu.json": "pixels", "ops_figure2_cpu.json": "window"}
_STEPS = ("multitask_cpu_quarter.json", "multitask_cpu.json")
_MODES = {"forward": "inference", "training": "training", "step, inference": "inference"}

# Name, axis and mode of a series.
Key = tuple[str, str, str]


def _points() -> Iterator[tuple[Key, str, float, float]]:
    for file, axis in _OPS.items():
        result = json.loads((FOLDER / file).read_text())
        for row in result["results"]:
            case = row["case"]
            size = case["height"] * case["width"] if axis == "pixels" else case["kernel_size"] ** 2
            if row["contestant"] == "cpp" and "skipped" not in row:
                key = (case["op"], axis, _MODES[row["mode"]])
                yield key, result["hardware"]["cpu"], size, row["median_ms"]
    for file in _STEPS:
        result = json.loads((FOLDER / file).read_text())
        for row in result["results"]:
            if row["mode"] in _MODES and "skipped" not in row:
                key = (row["contestant"], "pixels", _MODES[row["mode"]])
                size = row["size"][0] * row["size"][1]
                yield key, result["hardware"]["cpu"], size, row["median_ms"]


def earlier_slopes() -> dict[Key, tuple[str, float]]:
    """Fit the exponents of the times in earlier files.

    Returns:
        Name, axis and mode of a series -> processor and exponent.
    """
    points: dict[tuple[Key, str], list[tuple[float, float]]] = {}
    for key, machine, size, time in _points():
        points.setdefault((key, machine), []).append((size, time))
    return {
        key: (machine, slope(*zip(*sorted(found), strict=True)))
        for (key, machine), found in points.items()
        if len(found) > 1
    }

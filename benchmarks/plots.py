"""Plot time and memory against the size that grows in a set of shapes.

``python -m benchmarks.plots FILE.json ...`` draws the pictures of finished benchmarks again.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import MODES

if TYPE_CHECKING:
    from mmlocal.visualization.palette import Style

# Set of shapes -> key of the size that grows, and its label.
_AXES = {
    "figure2": ("kernel_size", "side of the window, pixels"),
    "resolution": ("height", "side of the map, pixels"),
}
# Our ways to compute an op: words and line style. The fastest comes first.
_OURS = {
    "triton": ("Triton", (0, (4, 1))),
    "cpp": ("C++", "-"),
    "eager": ("plain PyTorch", "--"),
}
_REFERENCE = "reference"
_UNITS = {"median_ms": "ms", "extra_bytes": "MiB"}


def plot_ops(result: dict, out: Path, stem: str) -> list[Path]:
    """Draw time and memory against the size that grows in the shapes.

    Args:
        result: result of :func:`benchmark_ops`.
        out: folder for the pictures.
        stem: beginning of the names of the pictures.

    Returns:
        Paths ``out/<stem>_<op>_<dtype>.png``, one for each op and dtype; empty if nothing grows.
    """
    if result["settings"]["shapes"] not in _AXES:
        return []
    groups = dict.fromkeys((row["case"]["op"], row["dtype"]) for row in result["results"])
    paths = []
    for op, dtype in groups:
        rows = [
            row
            for row in result["results"]
            if (row["case"]["op"], row["dtype"]) == (op, dtype) and "skipped" not in row
        ]
        if rows:
            paths.append(out / f"{stem}_{op}_{dtype}.png")
            _plot(rows, result, paths[-1])
    return paths


def headline(op: str, rows: list[dict]) -> str:
    """Say in one sentence how our fastest backend compares with windows that are written out.

    Args:
        op: name of the op, for people.
        rows: rows of ``results`` of one op and dtype that ran.

    Returns:
        The sentence. If one of both did not run, it names the plot only.
    """
    ours = next((name for name in _OURS if any(row["contestant"] == name for row in rows)), None)
    values = {
        (row["contestant"], row["mode"], row["case"]["name"]): row
        for row in rows
        if row["contestant"] in (ours, _REFERENCE)
    }
    pairs = [
        (row, values[_REFERENCE, mode, case])
        for (name, mode, case), row in values.items()
        if name == ours != _REFERENCE and (_REFERENCE, mode, case) in values
    ]
    if not pairs:
        return f"{op}: time and memory"
    faster = [other["median_ms"] / row["median_ms"] for row, other in pairs]
    # An op may need no extra memory at all.
    leaner = [other["extra_bytes"] / max(row["extra_bytes"], 1) for row, other in pairs]
    return (
        f"{op} takes 1/{_round(min(faster))} to 1/{_round(max(faster))} of the time of written-out "
        f"windows,\nand at most 1/{_round(min(leaner))} of their memory"
    )


def _round(ratio: float) -> str:
    """Two digits of a ratio, never more than it is."""
    if ratio < 10:
        return f"{math.floor(ratio * 10) / 10:g}"
    unit = 10 ** (math.floor(math.log10(ratio)) - 1)
    return f"{math.floor(ratio / unit) * unit:,}"


def _plot(rows: list[dict], result: dict, path: Path) -> None:
    from mmlocal.visualization.figures import new_figure
    from mmlocal.visualization.palette import style_of

    key, label = _AXES[result["settings"]["shapes"]]
    op = rows[0]["case"]["op"]
    figure = new_figure(9, 8.8)
    styles = {name: _style(name, op) for name in dict.fromkeys(row["contestant"] for row in rows)}
    lines: dict[str, Any] = {}
    for axes, mode in zip(figure.subplots(2, 2), MODES, strict=True):
        for axis, column in zip(axes, _UNITS, strict=True):
            for name, style in styles.items():
                points = [(row["case"][key], row[column]) for row in rows
                          if (row["contestant"], row["mode"]) == (name, mode)]  # fmt: skip
                scale = 2**20 if column == "extra_bytes" else 1
                xs, ys = [x for x, _ in points], [y / scale for _, y in points]
                (line,) = axis.plot(xs, ys, **style.plot_arguments())
                lines.setdefault(style.words, line)
            axis.set(xlabel=label, ylabel=_UNITS[column])
        axes[0].set(title=f"{mode}: time", yscale="log")
        axes[1].set(title=f"{mode}: memory beside inputs and outputs")
        axes[1].set_yscale("symlog", linthresh=1)  # some contestants need no memory
        axes[1].set_ylim(bottom=0)
        ticks = sorted({row["case"][key] for row in rows})
        for axis in axes:
            if key == "height":
                axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{headline(style_of(op).words, rows)}\n", fontsize=12, weight="bold")
    figure.text(0.5, 0.938, _describe(rows, result, key), ha="center", fontsize=9, color="#555555")
    figure.savefig(path, dpi=100)


def _style(name: str, op: str) -> Style:
    """The look of a contestant: our backends have the colour of the op."""
    from mmlocal.visualization.palette import style_of

    if name not in _OURS:
        return style_of(name)
    words, line = _OURS[name]
    style = style_of(op)
    return replace(style, words=f"{style.words} of mmlocal, {words}", line=line, ours=True)


def _describe(rows: list[dict], result: dict, key: str) -> str:
    """The machine, and the sizes that do not grow."""
    case, hardware = rows[0]["case"], result["hardware"]
    machine = hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} threads"
    sizes = [f"{case['channels']} channels"]
    if key != "height":
        sizes.insert(0, f"maps of {case['height']}x{case['width']} pixels")
    if key != "kernel_size":
        sizes.append(f"windows of {case['kernel_size']}x{case['kernel_size']} pixels")
    return ", ".join([machine, rows[0]["dtype"], *sizes])


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        for drawn in plot_ops(json.loads(path.read_text()), path.parent, path.stem):
            print(drawn)

"""Plot time and memory against the size that grows in a set of shapes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import MODES

# Set of shapes -> key of the size that grows, and its label.
_AXES = {"figure2": ("kernel_size", "kernel size"), "resolution": ("height", "side of the map")}


def plot_ops(result: dict, out: Path, stem: str) -> list[Path]:
    """Draw time and memory against the size that grows in the shapes.

    Args:
        result: result of :func:`benchmark_ops`.
        out: folder for the pictures.
        stem: beginning of the names of the pictures.

    Returns:
        Paths ``out/<stem>_<op>_<dtype>.png``, one for each op and dtype; empty if nothing grows.
    """
    # pyplot would need a display and would change the caller's state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if result["settings"]["shapes"] not in _AXES:
        return []
    key, label = _AXES[result["settings"]["shapes"]]
    paths = []
    groups = dict.fromkeys((row["case"]["op"], row["dtype"]) for row in result["results"])
    # A contestant has the same colour in all pictures.
    ran = {row["contestant"] for row in result["results"] if "skipped" not in row}
    colors = {name: f"C{i}" for i, name in enumerate(sorted(ran))}
    for op, dtype in groups:
        figure = Figure(figsize=(12, 8), layout="constrained")
        FigureCanvasAgg(figure)
        lines = {}
        for axes, mode in zip(figure.subplots(2, 2), MODES, strict=True):
            curves: dict[str, list] = {}
            for row in result["results"]:
                case = (row["case"]["op"], row["dtype"], row["mode"])
                if case == (op, dtype, mode) and "skipped" not in row:
                    point = (row["case"][key], row["median_ms"], row["extra_bytes"] / 2**20)
                    curves.setdefault(row["contestant"], []).append(point)
            for name, points in sorted(curves.items()):
                for axis, column in zip(axes, (1, 2), strict=True):
                    xs, ys = [p[0] for p in points], [p[column] for p in points]
                    (lines[name],) = axis.plot(xs, ys, marker="o", color=colors[name])
            ticks = sorted({row["case"][key] for row in result["results"]})
            axes[0].set(title=f"{mode}: time", ylabel="ms", yscale="log")
            axes[1].set(title=f"{mode}: memory without inputs and outputs", ylabel="MiB")
            axes[1].set_yscale("symlog", linthresh=1)  # some contestants need no memory
            for axis in axes:
                axis.set_xscale("log", base=2) if key == "height" else None
                axis.set_xticks(ticks, [str(tick) for tick in ticks])
                axis.set_xlabel(label)
                axis.grid(alpha=0.3)
        figure.legend(lines.values(), lines.keys(), loc="outside right upper")
        hardware = result["hardware"]
        figure.suptitle(f"{op}, {dtype}, {hardware['gpu'] or hardware['cpu']}")
        paths.append(out / f"{stem}_{op}_{dtype}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths

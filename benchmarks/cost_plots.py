"""Draw one picture for each question of ``docs/cost_models.md``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cost_curves import Curve, curves, label_of, look_of, unit_of
from benchmarks.cost_page import BATCH, GPUS, activations, memory_of

# Above this exponent, a curve has left the linear regime. Full caches raise it to about 1.2.
_LINEAR = 1.3
_GREY = "#8a8a8a"
# Arguments of matplotlib that belong to lines, and to points.
_LINE = ("color", "linestyle", "linewidth", "zorder")
_POINTS = ("color", "marker", "markersize", "zorder")


def message_of(question: str, found: Sequence[Curve]) -> str:
    """Say in one sentence what a picture shows.

    Args:
        question: ``"pixels"``, ``"window"`` or ``"channels"``.
        found: the curves of the picture.
    """
    if question == "pixels":
        whole = [curve for curve in found if curve.kind != "op"]
        leaving = [label_of(curve.name) for curve in whole if curve.last_slope > _LINEAR]
        if not leaving:
            return "Time per pixel: no step or backbone leaves the linear regime"
        rest = len(whole) - len(leaving)
        return (
            f"On the largest maps, the time per pixel grows fast for {' and '.join(leaving)},\n"
            f"and little or not at all for the other {rest} steps and backbones"
        )
    models = [curve for curve in found if curve.kind == "backbone"] or list(found)
    if question == "window":
        growth = {c.name: c.times[-1] / c.times[0] for c in models}
        least, most = min(growth, key=growth.__getitem__), max(growth, key=growth.__getitem__)
        return (
            f"The largest window takes {growth[least]:.1f} ({label_of(least)}) to "
            f"{growth[most]:.1f} ({label_of(most)}) times the time of 3x3"
        )
    factors = [2**curve.time_slope for curve in models]
    return (
        f"Backbones of twice the channels take {min(factors):.1f} to {max(factors):.1f} times the "
        "time"
    )


def scale_message(gib: Sequence[Sequence[float]]) -> str:
    """Say how much memory the published batch needs.

    Args:
        gib: GiB of each model, one sequence for each number of ``GPUS``.
    """
    ranges = [f"{min(values):.0f} to {max(values):.0f} GiB" for values in gib]
    return (
        f"{BATCH} images need {ranges[0]} on each of {GPUS[0]} GPUs,\n"
        f"and {ranges[1]} on each of {GPUS[1]}"
    )


def _look(name: str, keys: Sequence[str]) -> dict[str, Any]:
    arguments = look_of(name).plot_arguments()
    return {key: arguments[key] for key in keys}


def _draw(curve: Curve, axis: Any, per_size: bool) -> None:
    """Points are measured, and the line is the fit."""
    each: Callable[[float, float], float] = lambda x, y: y / x if per_size else y  # noqa: E731
    low, high = curve.sizes[0], curve.sizes[-1]
    line = [low * (high / low) ** (i / 60) for i in range(61)]
    axis.plot(line, [each(x, curve.time_fit(x)) for x in line], **_look(curve.name, _LINE))
    points = [each(x, y) for x, y in zip(curve.sizes, curve.times, strict=True)]
    axis.plot(curve.sizes, points, linestyle="none", **_look(curve.name, _POINTS))


def _name(found: Sequence[Curve], axis: Any, per_size: bool) -> None:
    """Write names beside the last points. A name moves up where it would cover another one."""
    scale = 72 / axis.figure.dpi
    lasts = []
    for curve in found:
        last = curve.sizes[-1], curve.times[-1] / (curve.sizes[-1] if per_size else 1)
        lasts.append((axis.transData.transform(last)[1] * scale, last, curve.name))
    taken = float("-inf")
    for height, last, name in sorted(lasts):
        taken = max(height - 3, taken + 9)
        axis.annotate(
            label_of(name),
            last,
            xytext=(6, taken - height),
            textcoords="offset points",
            fontsize=8,
            color=look_of(name).colour,
        )


def _draw_axis(result: dict, question: str, path: Path) -> None:
    from mmlocal.visualization.figures import new_figure

    mode = "inference" if question == "pixels" else "training"
    found = [curve for curve in curves(result, question) if curve.mode == mode]
    per_size = question == "pixels"
    figure = new_figure(10, 4.6)
    panels = figure.subplots(1, 2)
    named: list[tuple[list[Curve], Any, bool]] = []
    for axis, kinds, title in zip(
        panels,
        (("op", "step"), ("backbone",)),
        ("Ops and steps", "Backbones"),
        strict=True,
    ):
        shown = [curve for curve in found if curve.kind in kinds]
        for curve in shown:
            _draw(curve, axis, per_size)
        words = unit_of(kinds[0], question)[0]
        axis.set(xscale="log", yscale="log", xlabel=words, title=f"{title}, {mode}")
        axis.set_ylabel(f"ms per {words.replace('s of', ' of', 1)}" if per_size else "ms")
        low, high = axis.get_xlim()
        axis.set_xlim(low, high * (high / low) ** 0.45)  # room for the names
        for side in (axis.xaxis, axis.yaxis):
            low, high = side.get_view_interval()
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter("{x:g}" if high < 10 * low else "")
        axis.grid(alpha=0.3)
        named.append((shown, axis, per_size))
    figure.suptitle(message_of(question, found), fontsize=12, weight="bold")
    figure.draw_without_rendering()  # the names need the final place of the axes
    for arguments in named:
        _name(*arguments)
    figure.savefig(path, dpi=100)


def _draw_scale(result: dict, path: Path) -> None:
    from mmlocal.visualization.figures import new_figure

    found = activations(result)
    rows = [row for row in result["results"] if row["kind"] == "processes" and row["name"] in found]
    figure = new_figure(8, 5)
    axis = figure.subplots()
    shares = [BATCH // n for n in GPUS]
    gib: list[list[float]] = [[] for _ in shares]
    images = [2 ** (i / 4) for i in range(33)]
    for row in rows:
        name = row["name"]

        def needed(count: float, row: dict = row) -> float:
            return memory_of(row["parameters"], found[row["name"]][0], count) / 2**30

        line = [needed(x) for x in images]
        axis.plot(images, line, label=label_of(name), **_look(name, _LINE))
        axis.plot(shares, [needed(x) for x in shares], linestyle="none", **_look(name, _POINTS))
        for values, share in zip(gib, shares, strict=True):
            values.append(needed(share))
    for share, number in zip(shares, GPUS, strict=True):
        axis.axvline(share, color=_GREY, linewidth=0.8)
        axis.annotate(f" {number} GPUs", (share, 0.96), xycoords=("data", "axes fraction"),
                      fontsize=8, color=_GREY)  # fmt: skip
    for size in (24, 80):
        axis.axhline(size, color=_GREY, linewidth=0.8, linestyle=":")
        axis.annotate(f"{size} GiB", (1, size), xytext=(0, 2), textcoords="offset points",
                      fontsize=8, color=_GREY)  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks([2**i for i in range(9)], [str(2**i) for i in range(9)])
    axis.set(yscale="log", xlabel="images of each GPU", ylabel="GiB of each GPU, estimated")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(scale_message(gib), fontsize=12, weight="bold")
    figure.savefig(path, dpi=100)


def draw_all(result: dict, path_of: Callable[[str], Path]) -> list[Path]:
    """Draw all pictures.

    Args:
        result: result of :func:`benchmarks.cost_models.measure`.
        path_of: question -> picture to write.

    Returns:
        The pictures.
    """
    drawn = []
    for question in ("pixels", "window", "channels", "scale"):
        path = path_of(question)
        path.parent.mkdir(parents=True, exist_ok=True)
        if question == "scale":
            _draw_scale(result, path)
        else:
            _draw_axis(result, question, path)
        drawn.append(path)
    return drawn

"""Plots of training runs, and comparisons of models that were trained alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmlocal.visualization.figures import new_figure
from mmlocal.visualization.palette import style_of


def plot_curves(
    scalars: Sequence[str | Path],
    out: str | Path,
    losses: Mapping[str, str],
    metrics: Mapping[str, str],
    scale: float = 1.0,
) -> None:
    """Plot losses and metrics of a run side by side over the iterations.

    Args:
        scalars: files ``vis_data/scalars.json`` of MMEngine's ``LocalVisBackend``, one for each
            part of a resumed run, oldest first.
        out: picture to write. The suffix decides the format.
        losses: names of losses to plot on the left -> words for the legend.
        metrics: names of metrics to plot on the right -> words for the legend.
        scale: factor that brings the metrics to [0, 1].

    Raises:
        ValueError: the logs hold none of ``losses``.
    """
    curves = read_curves(scalars, [*losses, *metrics])
    if not any(curves[name] for name in losses):
        raise ValueError(f"scalars must hold one of the losses {tuple(losses)}, got {scalars}")
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2, sharex=True)
    for name, words in losses.items():
        left.plot(curves[name].keys(), curves[name].values(), label=words)
    for name, words in metrics.items():
        values = [value * scale for value in curves[name].values()]
        right.plot(curves[name].keys(), values, label=words, marker="o")
    left.set(title="training losses", ylabel="loss", ylim=(0, None))
    right.set(title="validation", ylim=(0, None))
    if max((value * scale for name in metrics for value in curves[name].values()), default=0) <= 1:
        right.set_ylim(0, 1)
    for axis in (left, right):
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(out, dpi=120)


def read_curves(scalars: Sequence[str | Path], names: Sequence[str]) -> dict[str, dict[int, float]]:
    """Read the values of a run that were logged under some names.

    Args:
        scalars: files as for :func:`plot_curves`.
        names: names of losses or metrics.

    Returns:
        Name -> iteration -> value. Where the parts of a resumed run overlap, the newest counts.
    """
    curves: dict[str, dict[int, float]] = {name: {} for name in names}
    for path in scalars:
        step = 0
        for line in Path(path).read_text().splitlines():
            entry = json.loads(line)
            # A validation entry may count epochs, so it is drawn at the last training iteration.
            step = entry["step"] if "loss" in entry else step
            for name in names:
                if name in entry:
                    curves[name][step] = entry[name]
    return {name: dict(sorted(values.items())) for name, values in curves.items()}


@dataclass(frozen=True)
class Metric:
    """A metric of a comparison.

    Args:
        name: name in the validation log.
        words: title of its plot.
        better: ``"higher"`` or ``"lower"``.
    """

    name: str
    words: str
    better: str


def plot_metrics(
    runs: Mapping[str, Sequence[str | Path]],
    out: str | Path,
    metrics: Sequence[Metric],
    title: str = "",
) -> None:
    """Plot the validation of several runs: one plot for each metric, with all runs in it.

    Args:
        runs: name of a model, as :func:`~mmlocal.visualization.palette.style_of` knows it -> files
            as for :func:`plot_curves`.
        out: picture to write. The suffix decides the format.
        metrics: metrics to plot, two in a row.
        title: title above all plots.
    """
    rows = -(-len(metrics) // 2)
    figure = new_figure(9, 0.9 + 2.9 * rows)
    figure.suptitle(title)
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    names = [metric.name for metric in metrics]
    lines = {}
    for run, scalars in runs.items():
        style = style_of(run)
        curves = read_curves(scalars, names)
        for axis, name in zip(axes, names, strict=False):
            steps, values = list(curves[name].keys()), list(curves[name].values())
            (lines[style.words],) = axis.plot(steps, values, **style.plot_arguments())
    for axis in axes[len(metrics) :]:
        axis.set_axis_off()
    for axis, metric in zip(axes, metrics, strict=False):
        axis.set(title=f"{metric.words} ({metric.better} is better)", xlabel="training iteration")
        axis.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(out, dpi=110)


@dataclass(frozen=True)
class Contender:
    """A model of a comparison.

    Args:
        name: name, as :func:`~mmlocal.visualization.palette.style_of` may know it.
        values: result of each run.
        mean: mean of the runs.
        std: standard deviation of the runs; ``None`` for one run.
        costs: title of a cost, with its unit -> value.
    """

    name: str
    values: Sequence[float]
    mean: float
    std: float | None
    costs: Mapping[str, float]


def plot_contenders(
    contenders: Sequence[Contender], out: str | Path, metric: str, title: str = ""
) -> None:
    """Plot one row for each model: its result with error bar, and its costs beside it.

    Args:
        contenders: models from top to bottom, all with the same ``costs``.
        out: picture to write. The suffix decides the format.
        metric: name of the result.
        title: title above all plots.

    Raises:
        ValueError: ``contenders`` is empty.
    """
    if not contenders:
        raise ValueError("contenders must hold at least one model")
    costs = list(contenders[0].costs)
    figure = new_figure(9, 1.6 + 0.33 * len(contenders))
    figure.suptitle(title, fontsize=11, weight="bold")
    ratios = [2.2, *[1.0] * len(costs)]
    axes = figure.subplots(1, 1 + len(costs), sharey=True, width_ratios=ratios, squeeze=False)[0]
    for row, contender in enumerate(contenders):
        style = style_of(contender.name)
        look = style.plot_arguments() | {"linestyle": "none"}
        spread = contender.std or 0.0
        axes[0].errorbar(contender.mean, row, xerr=spread, elinewidth=1.6, **look)
        dots = dict(color=style.colour, marker=".", linestyle="none", markersize=5, alpha=0.6)
        axes[0].plot(contender.values, [row] * len(contender.values), **dots)
        for axis, cost in zip(axes[1:], costs, strict=True):
            value = contender.costs[cost]
            axis.barh(row, value, height=0.6, color=style.colour, alpha=1.0 if style.ours else 0.6)
            axis.annotate(
                f"{value:.2f}", (value, row), (3, 0), textcoords="offset points", va="center",
                fontsize=9,
            )  # fmt: skip
    styles = [style_of(contender.name) for contender in contenders]
    axes[0].set_yticks(range(len(styles)), [style.words for style in styles])
    for tick, style in zip(axes[0].get_yticklabels(), styles, strict=True):
        tick.set(color=style.colour if style.ours else "black")
        tick.set_fontweight("bold" if style.ours else "normal")
    axes[0].invert_yaxis()
    axes[0].set_xlabel(metric)
    for axis, cost in zip(axes[1:], costs, strict=True):
        axis.set_xlabel(cost)
        axis.margins(x=0.22)
        axis.set_xlim(left=0)
    for axis in axes:
        axis.grid(alpha=0.3, axis="x")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)

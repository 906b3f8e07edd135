"""Plot published accuracy against measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# Strong colours for ours, in a palette that colour-blind readers can tell apart; grey for others.
COLORS = {"ELSA-Swin": "#d55e00", "QnA-ViT": "#0072b2", "DWNet": "#009e73", "VOLO": "#cc79a7"}
OTHERS = "#8a8a8a"


def plot_choices(points: Sequence[tuple[str, str, float, float]], path: Path) -> None:
    """Draw one point for each model, and a line through each family.

    Args:
        points: label, family, images per second, and top-1 accuracy in per cent of each model.
        path: picture to write, in SVG. Each point is a group whose ``id`` holds its label and both
            numbers.
    """
    # pyplot would need a display and would change the caller's state.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    families = dict.fromkeys(family for _, family, _, _ in points)
    for family in families:
        members = sorted(point[2:] for point in points if point[1] == family)
        if family in COLORS:
            axes.plot(*zip(*members, strict=True), color=COLORS[family], alpha=0.35, zorder=1)
    for label, family, speed, top1 in points:
        ours = family in COLORS
        axes.scatter(
            [speed],
            [top1],
            s=60 if ours else 40,
            color=COLORS.get(family, OTHERS),
            marker="o" if ours else "s",
            zorder=2,
            gid=f"{label}: {speed:.1f}, {top1:g}",
        )
        axes.annotate(
            label,
            (speed, top1),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=9,
            color=COLORS.get(family, OTHERS),
            fontweight="bold" if ours else "normal",
        )
    axes.set_xscale("log")
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100) if _spans(points, tick)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(right=1.25 * max(speed for _, _, speed, _ in points))  # room for the labels
    axes.set_xlabel("images per second, measured (further right is faster)")
    axes.set_ylabel("ImageNet top-1 in per cent, as published")
    axes.set_title("Published accuracy and measured speed: ours in colour, others in grey")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text as text, and no date and no random names: equal figures give an equal file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "choosing"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _spans(points: Sequence[tuple[str, str, float, float]], tick: float) -> bool:
    speeds = [speed for _, _, speed, _ in points]
    return min(speeds) / 1.5 <= tick <= max(speeds) * 1.5

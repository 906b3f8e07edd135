"""Plot published accuracy against measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmlocal.visualization.palette import style_of

Point = tuple[str, str, float, float]

# A family has the colour that its operator has in all plots.
_OPERATORS = {
    "ELSA-Swin": "ELSA",
    "QnA-ViT": "QnA",
    "DWNet": "DynamicDepthwiseConv",
    "VOLO": "OutlookAttention",
}
COLORS = {family: style_of(name).colour for family, name in _OPERATORS.items()}
OTHERS = style_of("others").colour
REFERENCE = "Swin-T"
_FONT = 9  # points
_TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000)


def plot_choices(points: Sequence[Point], path: Path) -> None:
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

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for family in dict.fromkeys(family for _, family, _, _ in points):
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
            gid=f"{label}: {speed:.1f}, {top1}",
        )
    speeds = [speed for _, _, speed, _ in points]
    axes.set_xscale("log")
    axes.set_xlim(min(speeds) / 1.25, max(speeds) * 1.35)  # room for the labels
    low, high = axes.get_xlim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("images per second, measured (further right is faster)")
    axes.set_ylabel("ImageNet top-1 in per cent, as published")
    axes.set_title(_message(points))
    axes.grid(alpha=0.3)
    figure.draw_without_rendering()  # the labels need the final place of the axes
    _label(axes, points)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text as text, and no date and no random names: equal figures give an equal file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "choosing"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    # matplotlib ends some lines with spaces, which the checks of a commit remove.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def _message(points: Sequence[Point]) -> str:
    """Count the models of ours that beat the reference in both axes."""
    ours = [point for point in points if point[1] in COLORS]
    reference = next((point for point in points if point[0] == REFERENCE), None)
    better = [
        point
        for point in ours
        # Accuracies are published with one or two decimals.
        if reference and point[2] > reference[2] and point[3] > reference[3] + 0.05
    ]
    if not better:
        return "Published accuracy and measured speed: ours in colour, others in grey"
    return f"{len(better)} of our {len(ours)} models are faster than {REFERENCE} and more accurate"


def _label(axes: Any, points: Sequence[Point]) -> None:
    """Write the name beside each point, where it covers no point and no other name."""
    scale = 72 / axes.figure.dpi
    places = {p[0]: axes.transData.transform(p[2:]) * scale for p in points}
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places.values()]
    for label, family, *at in points:
        x, y = places[label]
        ours = family in COLORS
        width, height = (0.66 if ours else 0.58) * _FONT * len(label), 1.1 * _FONT
        # Distances to the left lower corner of the text: right, left, above, below.
        offsets = [(6, 4), (6, -4 - height), (-6 - width, 4), (-6 - width, -4 - height)]
        offsets += [(-width / 2, 7), (-width / 2, -7 - height), (8, -height / 2)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in offsets]
        free = [not any(_overlap(box, other) for other in taken) for box in boxes]
        best = free.index(True) if True in free else 0
        taken.append(boxes[best])
        axes.annotate(
            label,
            at,
            xytext=offsets[best],
            textcoords="offset points",
            fontsize=_FONT,
            color=COLORS.get(family, OTHERS),
            fontweight="bold" if ours else "normal",
        )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

"""Measured costs against the size that grows, with their fits and their look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.cost_fit import Fit, error_of_largest, fit, slope
from benchmarks.cost_series import BACKBONES, size_of
from mmlocal.visualization.palette import Style, style_of

# Unit of the size in formulas: words, and the number of sizes in it.
_UNITS = {
    "pixels": ("thousands of pixels of the map", 1e3),
    "window": ("pixels of the window", 1.0),
    "channels": ("hundreds of channels", 100.0),
    "points": ("points in a map", 1.0),
    "tasks": ("tasks", 1.0),
    "images": ("images", 1.0),
}
_IMAGE_UNIT = ("megapixels of the image", 1e6)
# Name of a series -> words, and the contestant whose look it has.
_LOOKS = {
    "elsa": ("ELSA", "ELSA"),
    "neighborhood": ("neighbourhood scores", "SASA"),
    "qna": ("QnA", "QnA"),
    "outlook": ("outlook attention", "OutlookAttention"),
    "deformable": ("deformable attention", "InterTaskAttention"),
    "itsa": ("step of ITSA", "InterTaskAttention"),
    "demt": ("step of DeMT", "GlobalAttention"),
    "elsa_swin_tiny": (BACKBONES["elsa_swin_tiny"].label, "ELSA"),
    "qna_vit_tiny": (BACKBONES["qna_vit_tiny"].label, "QnA"),
    "dwnet_tiny": (BACKBONES["dwnet_tiny"].label, "DynamicDepthwiseConv"),
    "volo_d1": (BACKBONES["volo_d1"].label, "OutlookAttention"),
    "swin_tiny": (BACKBONES["swin_tiny"].label, "WindowAttention"),
}
MIB = 2**20


def unit_of(kind: str, axis: str) -> tuple[str, float]:
    """The unit of a size: words, and the number of sizes in it.

    Args:
        kind: kind of a series.
        axis: axis of the series.
    """
    return _IMAGE_UNIT if (kind, axis) == ("backbone", "pixels") else _UNITS[axis]


def label_of(name: str) -> str:
    """Words for the name of a series."""
    return _LOOKS[name][0] if name in _LOOKS else name


def look_of(name: str) -> Style:
    """Colour, marker and line of a series in plots."""
    return style_of(_LOOKS[name][1] if name in _LOOKS else name)


@dataclass(frozen=True)
class Curve:
    """Costs of one series in one mode.

    Args:
        kind: kind of the series.
        name: name of the series.
        axis: axis of the series.
        mode: ``"inference"`` or ``"training"``.
        sizes: what the costs are fitted to, in the unit of :func:`unit_of`.
        times: milliseconds.
        memory: MiB.
        powers: powers of the fits.
    """

    kind: str
    name: str
    axis: str
    mode: str
    sizes: tuple[float, ...]
    times: tuple[float, ...]
    memory: tuple[float, ...]
    powers: tuple[int, ...]

    @cached_property
    def time_fit(self) -> Fit:
        """Milliseconds as a function of the size."""
        return fit(self.sizes, self.times, self.powers)

    @cached_property
    def memory_fit(self) -> Fit:
        """MiB as a function of the size."""
        return fit(self.sizes, self.memory, self.powers)

    @property
    def time_slope(self) -> float:
        """Exponent of the time: 1 if it is proportional to the size."""
        return slope(self.sizes, self.times)

    @property
    def memory_slope(self) -> float:
        """Exponent of the memory."""
        return slope(self.sizes, self.memory)

    @property
    def last_slope(self) -> float:
        """Exponent of the time between the two largest sizes, where constants matter least."""
        return slope(self.sizes[-2:], self.times[-2:])

    @property
    def time_error_of_largest(self) -> float | None:
        """How far the other sizes mispredict the time of the largest; ``None`` for two sizes."""
        if len(self.sizes) < 3:
            return None
        return error_of_largest(self.sizes, self.times, self.powers)


def curves(
    result: dict, axis: str, kinds: Sequence[str] = ("op", "step", "backbone")
) -> list[Curve]:
    """Collect the curves of an axis.

    Args:
        result: result of :func:`benchmarks.cost_models.measure`.
        axis: axis of the series.
        kinds: kinds of the series.
    """
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in result["results"]:
        if row.get("axis") == axis and row["kind"] in kinds:
            groups.setdefault((row["kind"], row["name"], row["mode"]), []).append(row)
    made = []
    for (kind, name, mode), rows in groups.items():
        rows.sort(key=lambda row: row["value"])
        unit = unit_of(kind, axis)[1]
        sizes = tuple(size_of(axis, row["value"]) / unit for row in rows)
        times = tuple(row["median_ms"] for row in rows)
        memory = tuple(row["bytes"] / MIB for row in rows)
        if len(rows) > 1:
            made.append(
                Curve(kind, name, axis, mode, sizes, times, memory, tuple(rows[0]["powers"]))
            )
    order = list(_LOOKS)
    return sorted(made, key=lambda curve: order.index(curve.name) if curve.name in order else 99)

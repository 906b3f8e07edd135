"""Write the tables of ``docs/cost_models.md``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cost_curves import MIB, Curve, curves, label_of, unit_of
from benchmarks.cost_earlier import earlier_slopes
from benchmarks.cost_fit import Fit, fit
from benchmarks.cost_series import IMAGE
from benchmarks.report import format_table

PAGE = Path("docs/cost_models.md")
# Bytes of a parameter in a process of AdamW in float32: weight, gradient, two moments, and the
# copy of the gradient in DDP's bucket.
PARAMETER_BYTES = 20
GPUS = (8, 64)
BATCH = 1024  # of all published classifiers at 224x224, on all GPUs together
_DETECTOR_PIXELS = 800 * 1280
_TOOL = "written by tools/benchmark_cost_models.py"


def picture_of(question: str, device: str = "cpu") -> Path:
    """Path of a picture, from the folder of the page.

    Args:
        question: ``"pixels"``, ``"window"``, ``"channels"`` or ``"scale"``.
        device: device of the figures.
    """
    return Path(f"benchmarks/cost_models_{device}_{question}.png")


def formula(fitted: Fit) -> str:
    """Write a fit as a sum, such as ``0.2 + 61 x``."""
    names = {0: "", 1: " x", 2: " x²"}
    terms = [f"{_number(factor)}{names[power]}" for power, factor in fitted.factors.items()]
    return " + ".join(terms)


def _number(value: float) -> str:
    """Three digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _growth(found: Sequence[Curve]) -> str:
    """The table of one axis."""
    table = [
        ["", "mode", "exponent of time", "time, ms", "worst error", "largest size, predicted",
         "exponent of memory", "memory, MiB", "worst error"]
    ]  # fmt: skip
    for curve in found:
        error = curve.time_error_of_largest
        table.append(
            [
                label_of(curve.name),
                curve.mode,
                f"{curve.time_slope:.2f}",
                formula(curve.time_fit),
                f"{curve.time_fit.worst:.0%}",
                "-" if error is None else f"{round(error, 2) + 0.0:+.0%}",  # no -0%
                f"{curve.memory_slope:.2f}",
                formula(curve.memory_fit),
                f"{curve.memory_fit.worst:.0%}",
            ]
        )
    return format_table(table)


def _axis(result: dict, *axes: str) -> str:
    parts = []
    for axis in axes:
        for kinds in (("op", "step"), ("backbone",)):
            if found := curves(result, axis, kinds):
                parts += [f"`x` counts {unit_of(kinds[0], axis)[0]}:", "", _growth(found), ""]
    return "\n".join(parts).rstrip()


def _picture(result: dict, question: str, words: str) -> str:
    return f"![{words}]({picture_of(question, result['hardware']['device'])})"


def caches(result: dict) -> str:
    """Table of the time per pixel on the smallest, the best and the largest map of each op."""
    table = [["", "mode", "smallest map", "best map", "largest map", "largest / best"]]
    for curve in curves(result, "pixels", ["op"]):
        unit = unit_of("op", "pixels")[1]
        # nanoseconds per pixel
        each = [1e6 * y / (x * unit) for x, y in zip(curve.sizes, curve.times, strict=True)]
        best = min(range(len(each)), key=each.__getitem__)
        sides = [round((size * unit) ** 0.5) for size in curve.sizes]
        cells = [f"{each[i]:,.1f} ({sides[i]}x{sides[i]})" for i in (0, best, -1)]
        table.append([label_of(curve.name), curve.mode, *cells, f"{each[-1] / each[best]:.2f}"])
    return format_table(table)


def _earlier(result: dict) -> str:
    """Exponents of time, here and in earlier measurements."""
    earlier = earlier_slopes()
    table = [["", "size", "mode", "exponent here", "earlier", "earlier machine"]]
    for axis in ("pixels", "window"):
        for curve in curves(result, axis, ["op", "step"]):
            if found := earlier.get((curve.name, axis, curve.mode)):
                machine, exponent = found
                cells = [axis, curve.mode, f"{curve.time_slope:.2f}", f"{exponent:.2f}", machine]
                table.append([label_of(curve.name), *cells])
    return format_table(table)


def work_of(result: dict) -> dict[str, Fit]:
    """Fit the counted work of each backbone: multiply-accumulates of an image of ``x`` pixels."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for row in result["results"]:
        if row["kind"] == "count":
            rows.setdefault(row["name"], []).append((row["value"] ** 2, row["macs"]))
    fits = {}
    for name, points in rows.items():
        pixels, macs = zip(*points, strict=True)
        fitted = fit(pixels, macs, (0, 1, 2))
        # Work is a whole number; what rounding leaves of a term is none.
        kept = tuple(p for p, factor in fitted.factors.items() if factor * max(pixels) ** p > 1e3)
        fits[name] = fit(pixels, macs, kept)
    return fits


def square_share(fitted: Fit, size: float) -> float:
    """Share of the square term in a cost."""
    return fitted.factors.get(2, 0.0) * size**2 / fitted(size)


def half_side(fitted: Fit) -> float | None:
    """Side of the square whose square term is half of the cost; ``None`` without such a term.

    Args:
        fitted: cost of a number of pixels.
    """
    a, b, c = (fitted.factors.get(power, 0.0) for power in range(3))
    return None if c == 0 else ((b + (b * b + 4 * a * c) ** 0.5) / (2 * c)) ** 0.5


def _linear(result: dict) -> str:
    """Where the work of backbones leaves the linear regime, counted and measured."""
    timed = {
        curve.name: curve.time_fit
        for curve in curves(result, "pixels", ["backbone"])
        if curve.mode == "inference"
    }
    table = [
        ["", "GMACs of x megapixels", "worst error", f"square part at {IMAGE}x{IMAGE}",
         "at 800x1280", "half is square from, by work", "by time"]
    ]  # fmt: skip
    for name, work in work_of(result).items():
        giga = Fit({power: k * 1e6**power / 1e9 for power, k in work.factors.items()}, work.worst)
        side, by_time = half_side(work), half_side(timed[name]) if name in timed else None
        table.append(
            [
                label_of(name),
                formula(giga),
                f"{work.worst:.1%}",
                f"{square_share(work, IMAGE**2):.0%}",
                f"{square_share(work, _DETECTOR_PIXELS):.0%}",
                _side(side),
                _side(by_time and by_time * 1e3),
            ]
        )
    return format_table(table)


def _side(side: float | None) -> str:
    return "never" if side is None else f"{side:.0f}x{side:.0f}"


def _maps(result: dict) -> str:
    """One sentence on each step whose time has a square term."""
    sentences = []
    for curve in curves(result, "pixels", ["step"]):
        side = half_side(curve.time_fit)
        if curve.mode == "inference" and side is not None:
            side *= unit_of("step", "pixels")[1] ** 0.5
            sentences.append(
                f"At inference with four tasks, half of the time of a {label_of(curve.name)} is "
                f"square from maps of {side:.0f}x{side:.0f}."
            )
    return "\n".join(sentences)


def activations(result: dict) -> dict[str, tuple[float, float]]:
    """Bytes of activations of each backbone in training, of one more image and one more pixel."""
    images = {c.name: c for c in curves(result, "images", ["backbone"]) if c.mode == "training"}
    pixels = {c.name: c for c in curves(result, "pixels", ["backbone"]) if c.mode == "training"}
    found = {}
    for name in images.keys() & pixels.keys():
        lines = [fit(c.sizes, c.memory, (0, 1)).factors for c in (images[name], pixels[name])]
        found[name] = (lines[0][1] * MIB, lines[1][1] * MIB / 1e6)
    return found


def memory_of(parameters: int, image_bytes: float, images: float) -> float:
    """Estimate the bytes of a training process.

    Args:
        parameters: number of parameters.
        image_bytes: bytes of activations of an image.
        images: images of the process.
    """
    return PARAMETER_BYTES * parameters + image_bytes * images


def _processes(result: dict) -> list[dict]:
    return [row for row in result["results"] if row["kind"] == "processes"]


def _scale(result: dict) -> str:
    """The needs of several GPUs, in one table."""
    found = activations(result)
    table = [
        ["", "gradients, MiB", "in half precision",
         *(f"sent by each of {n} GPUs, MiB" for n in GPUS),
         f"activations of an image of {IMAGE}x{IMAGE}, MiB",
         *(f"each of {n} GPUs, {BATCH // n} images, GiB" for n in GPUS),
         "8 GPUs, 2 images of 800x1280, GiB"]
    ]  # fmt: skip
    for row in _processes(result):
        if row["name"] not in found:
            continue
        image, pixel = found[row["name"]]
        gradients, gib = 4 * row["parameters"], 2**30
        table.append(
            [
                label_of(row["name"]),
                f"{gradients / MIB:.1f}",
                f"{gradients / 2 / MIB:.1f}",
                *(f"{2 * (n - 1) / n * gradients / MIB:.0f}" for n in GPUS),
                f"{image / MIB:.0f}",
                *(f"{memory_of(row['parameters'], image, BATCH / n) / gib:.1f}" for n in GPUS),
                f"{memory_of(row['parameters'], pixel * _DETECTOR_PIXELS, 2) / gib:.1f}",
            ]
        )
    return format_table(table)


def _checked(result: dict) -> str:
    """Two processes, counted."""
    table = [
        ["", "parameters", "bytes of gradients", "reduced in a step", "through float16", "buckets",
         "loopback, of both", "largest difference of a gradient"]
    ]  # fmt: skip
    for row in _processes(result):
        loopback = row["loopback_bytes"]
        table.append(
            [
                label_of(row["name"]),
                f"{row['parameters']:,}",
                f"{4 * row['parameters']:,}",
                f"{row['reduced_bytes']:,}",
                f"{row['reduced_bytes_float16']:,}",
                str(row["buckets"]),
                "-" if loopback is None else f"{loopback:,}",
                f"{row['gradient_error']:.0e}",
            ]
        )
    return format_table(table)


def _machine(result: dict) -> str:
    hardware, versions = result["hardware"], result["versions"]
    machine = hardware["gpu"] or (
        f"{hardware['cpu']}, {hardware['cpu_capability']}, with {hardware['threads']} threads"
    )
    return (
        f"Measured on {result['date']}: {machine}, torch {versions['torch'].partition('+')[0]}, "
        f"float32,\nthe median of {result['settings']['rounds']} rounds."
    )


def parts(result: dict) -> dict[str, str]:
    """The generated parts of the page, by name.

    Args:
        result: result of :func:`benchmarks.cost_models.measure`.
    """
    return {
        "machine": _machine(result),
        "pixels": "\n\n".join(
            [_picture(result, "pixels", "Time per megapixel"), _axis(result, "pixels")]
        ),
        "caches": caches(result),
        "linear": _linear(result),
        "maps": _maps(result),
        "window": "\n\n".join(
            [_picture(result, "window", "Time and window"), _axis(result, "window", "points")]
        ),
        "channels": "\n\n".join(
            [_picture(result, "channels", "Time and channels"), _axis(result, "channels")]
        ),
        "earlier": _earlier(result),
        "tasks": _axis(result, "tasks"),
        "images": _axis(result, "images"),
        "scale": "\n\n".join(
            [_picture(result, "scale", "Memory and images of a GPU"), _scale(result)]
        ),
        "processes": _checked(result),
    }


def page_with(text: str, result: dict) -> str:
    """Replace the generated parts of the page.

    Args:
        text: the page.
        result: result of :func:`benchmarks.cost_models.measure`.

    Raises:
        ValueError: the page lacks the two lines that enclose a part.
    """
    for name, part in parts(result).items():
        begin, end = (f"<!-- {_TOOL}: {name}, {edge} -->" for edge in ("begin", "end"))
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text, number = pattern.subn(lambda _: f"{begin}\n\n{part}\n\n{end}", text)  # noqa: B023
        if number != 1:
            raise ValueError(f"{PAGE} must hold once the lines {begin} and {end}")
    return text

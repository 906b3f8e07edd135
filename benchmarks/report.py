"""Write tables and JSON files, and describe the machine that the figures belong to."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from mmlocal.files import write_whole
from mmlocal.version import __version__

# Modes of the benchmark of ops.
MODES = ("forward", "training")


def environment(device: torch.device) -> dict:
    """Describe hardware and versions, because figures belong to both.

    Args:
        device: device of the benchmark.

    Returns:
        A dict with the dicts ``hardware`` and ``versions``.
    """

    def version(distribution: str) -> str | None:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            return None

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    hardware = dict(
        device=device.type,
        cpu=cpu,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    )
    versions = dict(
        python=platform.python_version(),
        mmlocal=__version__,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=version("triton"),
        natten=version("natten"),
        torchvision=version("torchvision"),
        timm=version("timm"),
        mmpretrain=version("onedl-mmpretrain") or version("mmpretrain"),
    )
    return dict(hardware=hardware, versions=versions)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text as an aligned Markdown table.

    Args:
        rows: rows of the same length; the first one is the header.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) for c, w in zip(cells, widths, strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *padded[1:]])} |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def write_json(result: dict, path: Path) -> None:
    """Write the result of a benchmark, with one line for each row of ``results``.

    Args:
        result: result of a benchmark.
        path: file to write; missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    about = json.dumps({key: x for key, x in result.items() if key != "results"}, indent=1)
    rows = ",\n  ".join(json.dumps(row) for row in result["results"])
    write_whole(path, f'{about[:-2]},\n "results": [\n  {rows}\n ]\n}}\n')


def first_line(error: Exception) -> str:
    """The first line of an error, at most 200 characters; its type if it has no text."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def format_case(rows: Sequence[dict]) -> str:
    """Format the table of one shape, and list the contestants that did not run, with the reason.

    Args:
        rows: rows of ``results`` of one shape and dtype.
    """
    case = rows[0]["case"]
    table = [
        ["contestant", *(f"{mode} {unit}" for mode in MODES for unit in ("ms", "MiB", "copy"))]
    ]
    skipped: dict[str, list[str]] = {}
    for name in dict.fromkeys(row["contestant"] for row in rows):
        cells = [name]
        for mode in MODES:
            row = next(r for r in rows if (r["contestant"], r["mode"]) == (name, mode))
            if "skipped" in row:
                skipped.setdefault(f"{name}: {row['skipped']}", []).append(mode)
                cells += ["-"] * 3
                continue
            cells += [
                f"{row['median_ms']:.2f}",
                f"{row['extra_bytes'] / 2**20:.1f}",
                f"{row['fraction_of_copy']:.1%}",
            ]
        table.append(cells)
    title = (
        f"{case['op']}, {case['name']}: {case['batch']}x{case['channels']}x{case['height']}x"
        f"{case['width']}, {case['heads']} heads, kernel {case['kernel_size']}, "
        f"stride {case['stride']}, {rows[0]['dtype']}"
    )
    notes = [f"not run, {' and '.join(modes)}: {text}" for text, modes in skipped.items()]
    return "\n".join([title, "", format_table(table), *notes])

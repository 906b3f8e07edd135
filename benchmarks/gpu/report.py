"""Lines and tables from the results of ``benchmarks/gpu_check.sh``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import MODES, format_case, format_table


def is_bad(row: dict) -> bool:
    """Whether a row is a wrong result or an error.

    Args:
        row: one row of ``results``.
    """
    return "failed" in row or row.get("passed") is False


def format_row(row: dict) -> str:
    """Format one row as a line.

    Args:
        row: one row of ``results``.
    """
    head = f"[{row['at_s']:6.1f} s] {row['part']}: {row['item']}"
    for key in ("failed", "left_out", "skipped", "wrong"):
        if key in row:
            return f"{head}: {key.replace('_', ' ')}: {row[key]}"
    if "errors" in row:
        worst = max(row["errors"].values(), key=float)
        return f"{head}: {_verdict(row)}, worst error {float(worst):.1e}, limit {row['limit']:.1e}"
    if "passed" in row:
        return f"{head}: {_verdict(row)}"
    if "seconds" in row:
        return f"{head}: {', then '.join(f'{s:.2f} s' for s in row['seconds'])}"
    what = " ".join(str(row[key]) for key in ("contestant", "mode") if key in row)
    return f"{head}: {what} {row['median_ms']:.3f} ms"


def format_results(result: dict) -> str:
    """Format all tables as Markdown.

    Args:
        result: the contents of ``gpu_check.json``.
    """
    rows = result["results"]
    hardware, versions = result["hardware"], result["versions"]
    title = f"{hardware['gpu'] or 'rehearsal on a CPU'}, torch {versions['torch']}, "
    title += f"triton {versions['triton']}"
    sections = [title, _checks(rows), _ceilings(rows), *_ops(rows), _first_steps(rows)]
    sections += [_networks(rows), _kernels(rows), _notes(rows)]
    return "\n\n".join(section for section in sections if section)


def _verdict(row: dict) -> str:
    if row["passed"]:
        return "right"
    differing = row.get("differing")
    return f"WRONG, bits differ: {', '.join(differing)}" if differing else "WRONG"


def _checks(rows: Sequence[dict]) -> str:
    table = [["checks", "right", "wrong", "failed", "left out", "skipped"]]
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part]
        counts = [sum(row.get("passed") is x for row in own) for x in (True, False)]
        counts += [sum(key in row for row in own) for key in ("failed", "left_out", "skipped")]
        table.append([part, *map(str, counts)])
    return format_table(table)


def _ceilings(rows: Sequence[dict]) -> str:
    lines = []
    for row in rows:
        if "bytes_per_second" in row:
            lines.append(f"copy: {row['bytes_per_second'] / 1e9:.0f} GB/s, read and written")
        if "flops_per_second" in row:
            rate = row["flops_per_second"] / 1e12
            lines.append(f"matrix product in bfloat16: {rate:.1f} TFLOP/s")
    return "\n".join(lines)


def _ops(rows: Sequence[dict]) -> list[str]:
    """One table for each shape and dtype, with the time of our kernels alone below it."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        if "case" in row:
            groups.setdefault(row["item"], []).append(row)
    sections = []
    for group in groups.values():
        contestants = {row["contestant"] for row in group}
        if len(group) < len(MODES) * len(contestants):  # cut in between
            continue
        alone = [
            f"kernels alone, {row['contestant']} {row['mode']}: {row['kernel_ms']:.3f} ms"
            for row in group
            if row.get("kernel_ms")
        ]
        sections.append("\n".join([format_case(group), *alone]))
    return sections


def _first_steps(rows: Sequence[dict]) -> str:
    table = [["training in a new process", "Triton's cache", "step 1, s", "step 2, s"]]
    table += [
        [row["network"], row["cache"], *(f"{s:.2f}" for s in row["seconds"])]
        for row in rows
        if "seconds" in row
    ]
    return format_table(table) if len(table) > 1 else ""


def _networks(rows: Sequence[dict]) -> str:
    table = [["network", "mode", "batch", "img/s", "ms", "kernels alone, ms", "MiB"]]
    table += [
        [
            row["network"] + ", compiled" * row["compiled"],
            row["mode"],
            str(row["batch"]),
            f"{row['images_per_second']:.1f}",
            f"{row['median_ms']:.2f}",
            f"{row['kernel_ms']:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
        ]
        for row in rows
        if "images_per_second" in row
    ]
    return format_table(table) if len(table) > 1 else ""


def _kernels(rows: Sequence[dict]) -> str:
    """The longest kernels of our models in training."""
    lines = []
    for row in rows:
        ours = row.get("network", "").startswith(("elsa", "qna"))
        if ours and row.get("mode") == "training" and not row["compiled"] and row.get("kernels"):
            lines.append(f"{row['network']}, longest kernels of a training step, ms:")
            lines += [f"  {ms:9.3f}  {name[:100]}" for name, ms in row["kernels"].items()]
    return "\n".join(lines)


def _notes(rows: Sequence[dict]) -> str:
    """List wrong results, and items that did not run."""
    keys = ("failed", "wrong", "left_out")
    return "\n".join(
        format_row(row) for row in rows if any(key in row for key in keys) or is_bad(row)
    )

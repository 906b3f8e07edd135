"""Plots of benchmarks."""

import json
from pathlib import Path

import pytest

from benchmarks.plots import headline, plot_ops

FOLDER = Path(__file__).parents[2] / "docs/benchmarks"


def row(contestant: str, ms: float, extra: int, name: str = "a", mode: str = "forward") -> dict:
    case = dict(name=name)
    return dict(contestant=contestant, mode=mode, case=case, median_ms=ms, extra_bytes=extra)


def test_headline():
    """It never promises more than the figures say."""
    rows = [row("cpp", 1.0, 10), row("reference", 14.9, 1699), row("dwconv", 0.1, 0)]
    assert headline("ELSA", rows) == (
        "ELSA takes 1/14 to 1/14 of the time of written-out windows,\n"
        "and at most 1/160 of their memory"
    )
    rows += [row("cpp", 2.0, 0, "b"), row("reference", 2479.0, 5000, "b"), row("eager", 9.0, 9)]
    assert "and at most 1/160 of their memory" in headline("ELSA", rows)
    rows += [row("cpp", 2.0, 100, mode="training"), row("reference", 5.1, 130, mode="training")]
    assert headline("ELSA", rows).endswith("at most 1/1.3 of their memory")
    assert "takes 1/2.5 to 1/1,200 of the time of" in headline("ELSA", rows)


@pytest.mark.parametrize("left_out", ["cpp", "reference"])
def test_headline_without_comparison(left_out):
    rows = [row("cpp", 1.0, 10), row("reference", 9.0, 99), row("dwconv", 1.0, 1)]
    rows = [entry for entry in rows if entry["contestant"] != left_out]
    assert headline("QnA", rows) == "QnA: time and memory"


def test_committed_benchmark(tmp_path):
    result = json.loads((FOLDER / "ops_figure2_cpu.json").read_text())
    drawn = plot_ops(result, tmp_path, "new")
    assert [path.name for path in drawn] == ["new_elsa_float32.png", "new_qna_float32.png"]
    assert all(10_000 < path.stat().st_size < 300_000 for path in drawn)
    result["settings"]["shapes"] = "stages"  # nothing grows
    assert plot_ops(result, tmp_path, "none") == []

"""The demo: generate data, train, test and draw, through the same tools as any other run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from mmlocal.datasets.shapes import generate_shapes, read_manifest
from mmlocal.engine.cli import UsageError
from mmlocal.visualization import contact_sheet, plot_curves

CONFIG = "elsa_swin_nano_maskrcnn_shapes"
DATA_ROOT = Path("data/shapes")
METRICS = {
    f"{kind}_{name}": f"coco/{kind}_{key}"
    for kind in ("bbox", "segm")
    for name, key in (
        ("AP", "mAP"),
        ("AP50", "mAP_50"),
        ("AP75", "mAP_75"),
        ("APs", "mAP_s"),
        ("APm", "mAP_m"),
        ("APl", "mAP_l"),
    )
}
NUM_PICTURES = 12


def run_demo(tools: Path, work_dir: Path, config: str = CONFIG) -> dict:
    """Train and test a narrow ELSA-Swin Mask R-CNN on generated shapes.

    Writes to ``work_dir``: ``train/`` and ``test/`` with logs and the checkpoint, ``pictures/`` with
    ground truth beside prediction for each validation image, ``predictions.png``, ``curves.png``
    and ``summary.json``. The data goes to ``data/shapes`` unless a set is there already.

    Args:
        tools: folder of ``train.py`` and ``test.py``.
        work_dir: folder for the results.
        config: name or path of a config for the data in ``data/shapes``.

    Returns:
        The contents of ``summary.json``: the metrics of :data:`METRICS` and seconds per step.

    Raises:
        UsageError: ``data/shapes`` holds something else, or a step failed.
    """
    work_dir = work_dir.resolve()
    (work_dir / "summary.json").unlink(missing_ok=True)
    seconds = {}

    start = time.perf_counter()
    _prepare_data()
    seconds["data"] = time.perf_counter() - start

    start = time.perf_counter()
    train_dir = work_dir / "train"
    _run("training", work_dir, tools / "train.py", config, "--work-dir", train_dir)
    seconds["train"] = time.perf_counter() - start

    start = time.perf_counter()
    checkpoint = Path((train_dir / "last_checkpoint").read_text().strip())
    pictures = work_dir / "pictures"
    arguments = (config, checkpoint, "--work-dir", work_dir / "test", "--show-dir", pictures)
    _run("testing", work_dir, tools / "test.py", *arguments)
    seconds["test"] = time.perf_counter() - start

    results = _newest(work_dir / "test", "*/*.json")
    results = json.loads(results.read_text())
    scalars = _newest(train_dir, "*/vis_data/scalars.json")
    plot_curves(
        scalars,
        work_dir / "curves.png",
        losses=("loss", "loss_cls", "loss_bbox", "loss_mask", "loss_rpn_cls", "loss_rpn_bbox"),
        metrics=[METRICS[name] for name in ("bbox_AP", "bbox_AP50", "segm_AP", "segm_AP50")],
    )
    drawn = sorted(pictures.rglob("*.png")) + sorted(pictures.rglob("*.jpg"))
    contact_sheet(drawn[:NUM_PICTURES], work_dir / "predictions.png")
    summary = {
        "config": config,
        "metrics": {name: results[key] for name, key in METRICS.items()},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "checkpoint": _relative(checkpoint),
        "pictures": [_relative(work_dir / "predictions.png"), _relative(pictures)],
        "curves": _relative(work_dir / "curves.png"),
    }
    (work_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def format_summary(summary: dict) -> str:
    """A few lines for the terminal."""
    metrics, seconds = summary["metrics"], summary["seconds"]
    names = [name.removeprefix("bbox_") for name in metrics if name.startswith("bbox_")]
    lines = ["", "      " + "".join(f"{name:>8}" for name in names)]
    for kind, title in (("bbox", "box"), ("segm", "mask")):
        lines.append(f"{title:<6}" + "".join(f"{metrics[f'{kind}_{n}']:8.3f}" for n in names))
    steps = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    lines += [
        "",
        f"time      {sum(seconds.values()):.0f} s ({steps})",
        f"pictures  {', '.join(summary['pictures'])} (ground truth left, prediction right)",
        f"curves    {summary['curves']}",
    ]
    return "\n".join(lines)


def _prepare_data() -> None:
    manifest = read_manifest(DATA_ROOT)
    if manifest is not None and "det" in manifest["arguments"]["tasks"]:
        print(f"data: {DATA_ROOT} is there already", flush=True)
        return
    print(f"data: generating {DATA_ROOT}", flush=True)
    try:
        generate_shapes(DATA_ROOT)
    except (ValueError, OSError) as error:
        raise UsageError(f"the data cannot be generated: {error}") from error


def _run(step: str, work_dir: Path, *command: str | Path) -> None:
    """Run a tool; show the lines of its log that tell progress, keep all of them in a file."""
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / f"{step}.log"
    print(f"{step}: {' '.join(map(_relative, command[:2]))} (log: {_relative(log)})", flush=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            for line in process.stdout:
                file.write(line)
                if "INFO - Epoch(" in line:
                    print("  " + line.split("INFO - ")[1].rstrip()[:150], flush=True)
            code = process.wait()
        finally:
            process.terminate()
    if code:
        tail = log.read_text().splitlines()[-15:]
        raise UsageError("\n".join([f"{step} failed with exit code {code}, see {log}:", *tail]))


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def _relative(path: str | Path) -> str:
    """Relative to the working directory where that is shorter, for people to read and copy."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)

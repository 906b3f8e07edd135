"""The demos: generate data, train, test and draw, through the same tools as any other run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mmlocal.checkpoints.files import write_whole
from mmlocal.cli.config import load_config
from mmlocal.datasets.shapes import VERSION, add_task, generate_shapes, read_manifest
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of
from mmlocal.visualization import contact_sheet, plot_curves

DATA_ROOT = Path("data/shapes")


@dataclass(frozen=True)
class Demo:
    """A demo: the config to train and the pictures to show.

    Args:
        config: name of the config, for the data in ``data/shapes``.
        metrics: name in the summary -> name in the results of the test.
        losses: names in the training log, to plot.
        curves: names in the validation log, to plot.
        scale: factor that brings the metrics to [0, 1].
        columns: pictures per row of the contact sheet.
    """

    config: str
    metrics: dict[str, str]
    losses: tuple[str, ...]
    curves: tuple[str, ...]
    scale: float = 1.0
    columns: int = 2


DEMOS = {
    "det": Demo(
        config="elsa_swin_nano_maskrcnn_shapes",
        metrics={
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
        },
        losses=("loss", "loss_cls", "loss_bbox", "loss_mask", "loss_rpn_cls", "loss_rpn_bbox"),
        curves=("coco/bbox_mAP", "coco/bbox_mAP_50", "coco/segm_mAP", "coco/segm_mAP_50"),
    ),
    "seg": Demo(
        config="elsa_swin_nano_upernet_shapes",
        metrics={"mIoU": "mIoU", "mAcc": "mAcc", "aAcc": "aAcc"},
        losses=("loss", "decode.loss_ce", "aux.loss_ce"),
        curves=("mIoU", "mAcc", "aAcc"),
        scale=0.01,
    ),
    "cls": Demo(
        config="elsa_swin_nano_shapes",
        metrics={"top1": "accuracy/top1"},
        losses=("loss",),
        curves=("accuracy/top1",),
        scale=0.01,
        columns=6,
    ),
}
NUM_PICTURES = 12


def run_demo(work_dir: Path, task: str = "det", config: str | None = None) -> dict:
    """Train and test a narrow ELSA-Swin on generated shapes.

    Writes to ``work_dir``: ``train/`` and ``test/`` with logs and checkpoint, ``pictures/`` with
    the predictions for validation images, ``predictions.png``, ``curves.png`` and
    ``summary.json``. The data of the task goes to ``data/shapes``, unless it is there already;
    other tasks' data stays.

    Args:
        work_dir: folder for the results.
        task: a key of :data:`DEMOS`.
        config: name or path of another config for the same data and task.

    Returns:
        The contents of ``summary.json``: metrics in [0, 1], seconds per step, and the arguments of
        the generator that made the data.

    Raises:
        UsageError: no such config, its library cannot run here, ``data/shapes`` holds something
            else, or a step failed.
    """
    demo = DEMOS[task]
    config = config or demo.config
    library_of(load_config(config)).require()  # before minutes go into the data
    work_dir = work_dir.resolve()
    (work_dir / "summary.json").unlink(missing_ok=True)
    seconds = {}

    start = time.perf_counter()
    data = _prepare_data(task)
    seconds["data"] = time.perf_counter() - start

    start = time.perf_counter()
    train_dir = work_dir / "train"
    _run("training", work_dir, "train", config, "--work-dir", train_dir)
    seconds["train"] = time.perf_counter() - start

    start = time.perf_counter()
    checkpoint = Path((train_dir / "last_checkpoint").read_text().strip())
    pictures = work_dir / "pictures"
    arguments = (config, checkpoint, "--work-dir", work_dir / "test", "--show-dir", pictures)
    _run("testing", work_dir, "test", *arguments)
    seconds["test"] = time.perf_counter() - start

    results = json.loads(_newest(work_dir / "test", "*/*.json").read_text())
    if missing := [key for key in demo.metrics.values() if key not in results]:
        raise UsageError(
            f"testing gave no {missing[0]}: a model that finds nothing at all gets no metrics; see "
            f"{_relative(work_dir / 'testing.log')}"
        )
    scalars = _newest(train_dir, "*/vis_data/scalars.json")
    plot_curves(scalars, work_dir / "curves.png", demo.losses, demo.curves, demo.scale)
    drawn = sorted(path for path in pictures.rglob("*") if path.suffix in (".png", ".jpg"))
    contact_sheet(drawn[:NUM_PICTURES], work_dir / "predictions.png", demo.columns)
    summary = {
        "config": config,
        "data": data,
        "metrics": {
            name: round(results[key] * demo.scale, 4) for name, key in demo.metrics.items()
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "checkpoint": _relative(checkpoint),
        "pictures": [_relative(work_dir / "predictions.png"), _relative(pictures)],
        "curves": _relative(work_dir / "curves.png"),
    }
    write_whole(work_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def format_summary(summary: dict) -> str:
    """A few lines for the terminal."""
    seconds, data = summary["seconds"], summary["data"]
    rows: dict[str, list[str]] = {}
    for name, value in summary["metrics"].items():
        kind, _, short = name.rpartition("_")
        rows.setdefault(kind, []).append(f"{short} {value:.3f}")
    titles = {"bbox": "box", "segm": "mask"}
    steps = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    lines = [""]
    lines += [f"{titles.get(kind, 'result'):<9} {'  '.join(row)}" for kind, row in rows.items()]
    sizes = f"{data['image_size']} pixels wide (cls: {data['cls_size']})"
    lines += [
        f"data      {data['num_train']} training and {data['num_val']} test images, {sizes}",
        f"time      {sum(seconds.values()):.0f} s ({steps})",
        f"pictures  {', '.join(summary['pictures'])}",
        f"curves    {summary['curves']}",
    ]
    return "\n".join(lines)


def _prepare_data(task: str) -> dict:
    """Generate the data of the task unless it is there; the arguments it was generated with."""
    manifest = read_manifest(DATA_ROOT)
    if manifest is not None and manifest["version"] != VERSION:
        raise UsageError(
            f"{DATA_ROOT} was made by version {manifest['version']} of the generator, the demo "
            f"needs version {VERSION}; make it anew with 'mmlocal make-shapes --overwrite'"
        )
    if manifest is not None and task in manifest["arguments"]["tasks"]:
        print(f"data: {DATA_ROOT} is there already", flush=True)
        return manifest["arguments"]
    print(f"data: generating {DATA_ROOT} for the task {task}", flush=True)
    try:
        if manifest is not None:
            return add_task(DATA_ROOT, task)["arguments"]
        return generate_shapes(DATA_ROOT, tasks=[task])["arguments"]
    except FileExistsError as error:
        raise UsageError(
            f"{DATA_ROOT} is no data set of 'mmlocal make-shapes'; move it, the demo needs the "
            "place"
        ) from error
    except (ValueError, OSError) as error:
        raise UsageError(f"the data cannot be generated: {error}") from error


def _run(step: str, work_dir: Path, *command: str | Path) -> None:
    """Run ``mmlocal``; show the lines of its log that tell progress, keep all of them in a file."""
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / f"{step}.log"
    shown = " ".join(map(_relative, command[:2]))
    print(f"{step}: mmlocal {shown} (log: {_relative(log)})", flush=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mmlocal", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            for line in process.stdout:
                file.write(line)
                if " - Epoch(" in line or " - Iter(" in line:
                    print("  " + line.split(" - ", 3)[-1].rstrip()[:150], flush=True)
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

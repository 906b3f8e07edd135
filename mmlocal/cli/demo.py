"""Train, test and draw a small network on generated data, in minutes on a CPU."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmlocal.cli import program
from mmlocal.cli.config import load_config
from mmlocal.cli.generated_data import DATA_ROOT, prepare_shapes
from mmlocal.cli.tool import run_tool
from mmlocal.datasets.shapes import read_manifest
from mmlocal.errors import UsageError
from mmlocal.files import write_whole
from mmlocal.libraries import LIBRARIES, Demo, library_of
from mmlocal.visualization import contact_sheet, plot_curves

NUM_PICTURES = 12
DEFAULT = "det"


def demos() -> dict[str, Demo]:
    """The demos of the libraries by name."""
    return {library.demo.name: library.demo for library in LIBRARIES.values() if library.demo}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    models = [
        f"{demo.title} ({name}{', the default' if name == DEFAULT else ''})"
        for name, demo in demos().items()
    ]
    folders = [f"work_dirs/demo-{name}" for name in demos() if name != DEFAULT]
    parser = argparse.ArgumentParser(prog=program("demo"), description=__doc__)
    parser.add_argument(
        "task",
        nargs="?",
        choices=demos(),
        default=DEFAULT,
        help=f"model to train: {', '.join(models[:-1])} or {models[-1]}",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        help=f"folder for the results; default: work_dirs/demo for {DEFAULT}, "
        f"{' and '.join(folders)} for the others",
    )
    parser.add_argument("--config", help="another config to train, for the same task and data")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    run_tool(lambda: print(format_summary(run_demo(**vars(parse_args(argv))))))


def run_demo(task: str = DEFAULT, work_dir: Path | None = None, config: str | None = None) -> dict:
    """Train and test a narrow network with an ELSA-Swin backbone on generated data.

    Writes to ``work_dir``:

    - ``train/`` and ``test/``: logs and the checkpoint;
    - ``training.log`` and ``testing.log``: the output of the two commands;
    - ``pictures/``: the predictions for validation images;
    - ``predictions.png``: some of these pictures on one sheet;
    - ``curves.png``: the training curves;
    - ``summary.json``: the returned dict.

    Generates the data of the demo in ``data/shapes``, unless it is there already. Data of other
    tasks stays.

    Args:
        task: a key of :func:`demos`.
        work_dir: folder for the results; default: ``work_dirs/demo`` for ``"det"``,
            ``work_dirs/demo-<task>`` for the others.
        config: name or path of another config to train, for the same data and task.

    Returns:
        Metrics, seconds of each step, paths of the results, and the arguments of the generator that
        made the data. Metrics are in [0, 1], except errors of depth in metres and of normals in
        degrees. ``references`` has figures of trivial predictors, if the demo names any.

    Raises:
        ValueError: ``task`` is unknown.
        UsageError: there is no such config, its library cannot run here, ``data/shapes`` holds
            something else, or a step failed.
    """
    if task not in demos():
        raise ValueError(f"task must be one of {', '.join(demos())}, got {task!r}")
    demo = demos()[task]
    config = config or demo.config
    library_of(load_config(config)).require()  # before it spends minutes on the data
    work_dir = work_dir or Path("work_dirs") / ("demo" if task == DEFAULT else f"demo-{task}")
    work_dir = work_dir.resolve()
    (work_dir / "summary.json").unlink(missing_ok=True)
    train_dir, test_dir, pictures = (work_dir / name for name in ("train", "test", "pictures"))

    seconds: dict[str, float] = {}
    with _timed(seconds, "data"):
        data = prepare_shapes(demo.tasks)
    with _timed(seconds, "train"):
        _run("training", work_dir, "train", config, "--work-dir", train_dir)
    with _timed(seconds, "test"):
        checkpoint = Path((train_dir / "last_checkpoint").read_text().strip())
        folders = ("--work-dir", test_dir, "--show-dir", pictures)
        _run("testing", work_dir, "test", config, checkpoint, *folders)

    results = json.loads(_newest(test_dir, "*/*.json").read_text())
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
        "references": {
            name: _look_up(read_manifest(DATA_ROOT), keys) for name, keys in demo.references.items()
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "checkpoint": _relative(checkpoint),
        "pictures": [_relative(work_dir / "predictions.png"), _relative(pictures)],
        "curves": _relative(work_dir / "curves.png"),
    }
    write_whole(work_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def format_summary(summary: dict) -> str:
    """Format the result of :func:`run_demo` as a few lines for the terminal.

    Args:
        summary: dict that :func:`run_demo` returned.
    """
    seconds, data = summary["seconds"], summary["data"]
    rows: dict[str, list[str]] = {}
    for name, value in summary["metrics"].items():
        kind, _, short = name.rpartition("_")
        rows.setdefault(kind, []).append(f"{short} {value:.3f}")
    titles = {"bbox": "box", "segm": "mask", "": "result"}
    for name, value in summary["references"].items():
        rows.setdefault("reference", []).append(f"{name} {value:.3f}")
    width = max(9, *(len(kind) for kind in rows))
    steps = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    lines = [""]
    lines += [f"{titles.get(kind, kind):<{width}} {'  '.join(row)}" for kind, row in rows.items()]
    sizes = f"{data['image_size']} pixels wide (cls: {data['cls_size']})"
    if "scene_size" in data:
        sizes += ", scenes {}x{}".format(*data["scene_size"])
    rest = {
        "data": f"{data['num_train']} training and {data['num_val']} test images, {sizes}",
        "time": f"{sum(seconds.values()):.0f} s ({steps})",
        "pictures": ", ".join(summary["pictures"]),
        "curves": summary["curves"],
    }
    lines += [f"{title:<{width}} {text}" for title, text in rest.items()]
    return "\n".join(lines)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Write the duration of the block to ``seconds[step]``."""
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start


def _run(step: str, work_dir: Path, *command: str | Path) -> None:
    """Run ``mmlocal``, write its output to a log, and print the lines that show progress.

    Raises:
        UsageError: the command failed.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    log = work_dir / f"{step}.log"
    shown = " ".join(map(_relative, command[:2]))
    print(f"{step}: mmlocal {shown} (log: {_relative(log)})", flush=True)
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-m", "mmlocal", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                file.write(line)
                if " - Epoch(" in line or " - Iter(" in line:
                    print("  " + line.split(" - ", 3)[-1].rstrip()[:150], flush=True)
            code = process.wait()
        finally:
            process.terminate()
    if code:
        tail = log.read_text().splitlines()[-15:]
        raise UsageError("\n".join([f"{step} failed with exit code {code}, see {log}:", *tail]))


def _look_up(tree: Any, keys: Sequence[str]) -> float:
    for key in keys:
        tree = tree[key]
    return round(float(tree), 4)


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def _relative(path: str | Path) -> str:
    """A path to print: relative to the working directory if it lies in there."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)

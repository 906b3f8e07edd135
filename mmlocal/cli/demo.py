"""Train, test and draw a small network on generated data, in minutes on a CPU."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmlocal.cli import program
from mmlocal.cli.config import load_config
from mmlocal.cli.generated_data import DATA_ROOT, prepare_shapes
from mmlocal.cli.progress import ends_like_an_interrupt, run_step
from mmlocal.cli.tool import run_tool
from mmlocal.datasets.shapes import read_manifest
from mmlocal.errors import UsageError
from mmlocal.files import only_user_of, write_whole
from mmlocal.libraries import LIBRARIES, Demo, library_of
from mmlocal.visualization import contact_sheet, plot_curves

NUM_PICTURES = 6
DEFAULT = "det"
SHEETS = ("predictions.jpg", "first_images.jpg")


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
    run_tool(lambda: _run_and_print(vars(parse_args(argv))))


def _run_and_print(arguments: dict) -> None:
    try:
        with ends_like_an_interrupt():
            summary = run_demo(**arguments)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    print(format_summary(summary))


def run_demo(task: str = DEFAULT, work_dir: Path | None = None, config: str | None = None) -> dict:
    """Train and test a narrow network with an ELSA-Swin backbone on generated data.

    Each step prints how far it is. The output of training and test goes to logs. If a run is
    interrupted, the next call with the same arguments and data goes on from its last checkpoint.

    Writes to ``work_dir``:

    - ``train/`` and ``test/``: logs and the checkpoint;
    - ``training.log`` and ``testing.log``: the output of the two commands;
    - ``predictions.jpg``: good examples, with truth and prediction;
    - ``first_images.jpg``: the first test images with the scores of their objects, for demos that
      find objects or regions;
    - ``pictures/``: all test images, as the library of the config draws its predictions;
    - ``curves.png``: the training curves;
    - ``started.json``: what an interrupted run needs to go on;
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
        UsageError: there is no such config, its library cannot run here, another demo runs in
            ``work_dir``, ``data/shapes`` holds something else, or a step failed.
    """
    if task not in demos():
        raise ValueError(f"task must be one of {', '.join(demos())}, got {task!r}")
    demo = demos()[task]
    config = config or demo.config
    cfg = load_config(config)
    library_of(cfg).require()  # before it spends minutes on the data
    work_dir = work_dir or Path("work_dirs") / ("demo" if task == DEFAULT else f"demo-{task}")
    work_dir = work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    with only_user_of(work_dir) as alone:
        if not alone:
            raise UsageError(
                f"another demo runs in {_relative(work_dir)}; wait for it, or name another folder",
                "work_dir",
            )
        return _run_alone(demo, config, cfg, work_dir)


def _run_alone(demo: Demo, config: str, cfg: Config, work_dir: Path) -> dict:
    """Run the demo in a folder that no other demo uses."""
    (work_dir / "summary.json").unlink(missing_ok=True)
    train_dir, test_dir, pictures = (work_dir / name for name in ("train", "test", "pictures"))

    start = time.perf_counter()
    data = prepare_shapes(demo.tasks)
    # Data of more tasks may have come since an interrupt. It has no say in this run.
    made = {name: value for name, value in data.items() if name != "tasks"}
    run = _Run(work_dir, {"config": cfg.to_dict(), "data": made})
    run.add_seconds("data", time.perf_counter() - start)
    for name in SHEETS:
        (work_dir / name).unlink(missing_ok=True)
    if not run.has_trained:
        resume = ["--resume"] if run.resumes else []
        arguments = ["train", config, "--work-dir", str(train_dir), *resume]
        with run.timed("train"):
            _start("training", work_dir, arguments)
        run.mark_trained()
    checkpoint = Path((train_dir / "last_checkpoint").read_text().strip())
    arguments = ["test", config, str(checkpoint), "--work-dir", str(test_dir)]
    with run.timed("test"):
        _start("testing", work_dir, [*arguments, "--show-dir", str(pictures)], demo.sheets)

    results = json.loads(_newest(test_dir, "*/*.json").read_text())
    if missing := [key for key in demo.metrics.values() if key not in results]:
        raise UsageError(
            f"testing gave no {missing[0]}: a model that finds nothing at all gets no metrics; see "
            f"{_relative(work_dir / 'testing.log')}"
        )
    print("drawing the curves", flush=True)
    plot_curves(run.scalars(), work_dir / "curves.png", demo.losses, demo.curves, demo.scale)
    if not demo.sheets:
        drawn = sorted(path for path in pictures.rglob("*") if path.suffix in (".png", ".jpg"))
        contact_sheet(drawn[:NUM_PICTURES], work_dir / SHEETS[0])
    shown = [work_dir / name for name in SHEETS if (work_dir / name).exists()]
    summary = {
        "config": config,
        "data": data,
        "picture_size": data[demo.size],
        "metrics": {
            name: round(results[key] * demo.scale, 4) for name, key in demo.metrics.items()
        },
        "references": {
            name: _look_up(read_manifest(DATA_ROOT), keys) for name, keys in demo.references.items()
        },
        "seconds": {name: round(value, 1) for name, value in run.seconds.items()},
        "checkpoint": _relative(checkpoint),
        "pictures": [_relative(path) for path in (*shown, pictures)],
        "curves": _relative(work_dir / "curves.png"),
    }
    write_whole(work_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    run.finish()
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
    size = summary["picture_size"]
    height, wide = (size, size) if isinstance(size, int) else size
    rest = {
        "data": f"{data['num_train']} training and {data['num_val']} test images of "
        f"{height}x{wide} pixels",
        "time": f"{sum(seconds.values()):.0f} s ({steps})",
        "pictures": ", ".join(summary["pictures"]),
        "curves": summary["curves"],
    }
    lines += [f"{title:<{width}} {text}" for title, text in rest.items()]
    return "\n".join(lines)


class _Run:
    """A run of the demo in a folder, which goes on if it was interrupted with the same settings.

    Args:
        folder: folder for the results; it is made.
        settings: all that decides the result.
    """

    def __init__(self, folder: Path, settings: dict) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.train_dir = folder / "train"
        self.file = folder / "started.json"
        settings = json.loads(json.dumps(settings, default=str))
        state = json.loads(self.file.read_text()) if self.file.exists() else {}
        last = self.train_dir / "last_checkpoint"
        self.resumes = state.get("settings") == settings and last.exists()
        if not self.resumes:
            last.unlink(missing_ok=True)  # it belongs to another run
            older = [path.name for path in self.train_dir.glob("*/")]
            state = {"settings": settings, "older_runs": older, "has_trained": False, "seconds": {}}
        self.state = state
        self._write()

    @property
    def has_trained(self) -> bool:
        """Whether the training is complete."""
        return self.state["has_trained"]

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of each step, over all calls that this run took."""
        return self.state["seconds"]

    def add_seconds(self, step: str, seconds: float) -> None:
        """Add to the duration of a step."""
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        self._write()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the duration of the block, also if it is interrupted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(step, time.perf_counter() - start)

    def mark_trained(self) -> None:
        """Note that the training is complete."""
        self.state["has_trained"] = True
        self._write()

    def scalars(self) -> list[Path]:
        """Find the logged figures of the training: one file for each call, oldest first."""
        found = sorted(self.train_dir.glob("*/vis_data/scalars.json"))
        return [path for path in found if path.parts[-3] not in self.state["older_runs"]]

    def finish(self) -> None:
        """Let the next call start anew."""
        self.file.unlink()

    def _write(self) -> None:
        write_whole(self.file, json.dumps(self.state))


def _start(step: str, work_dir: Path, arguments: Sequence[str], sheets: bool = False) -> None:
    """Start a command of mmlocal that reports its progress, and wait for it.

    Raises:
        UsageError: the command failed.
    """
    log, state = work_dir / f"{step}.log", work_dir / "progress.json"
    options = [f"default_hooks.progress.{key}={value}" for key, value in
               (("type", "mmlocal.ProgressHook"), ("path", state))]  # fmt: skip
    if sheets:
        options += ["default_hooks.sheets.type=mmlocal.SheetHook"]
        options += [f"default_hooks.sheets.folder={work_dir}"]
    command = [sys.executable, "-m", "mmlocal", *arguments, "--cfg-options", *options]
    try:
        run_step(step, command, log, state, _relative(log))
    except KeyboardInterrupt:
        print(f"\n{step} was interrupted; its output is in {_relative(log)}", file=sys.stderr)
        raise
    finally:
        state.unlink(missing_ok=True)


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

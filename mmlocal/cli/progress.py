"""Show how far a child process is: one updating line on a terminal, a few lines in a log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mmlocal.errors import UsageError

_LINES = 10  # most lines of a step in a log, beside its first one
_SECONDS_TO_END = 5


def run_step(title: str, command: Sequence[str], log: Path, state: Path, shown: str) -> None:
    """Run a command, write its output to a log, and show how far it is.

    The command ends with this process, also after an interrupt.

    Args:
        title: name of the step, such as ``"training"``.
        command: program and arguments.
        log: file for the output of the command.
        state: file that :class:`mmlocal.engine.progress.ProgressHook` writes in the command.
        shown: path of the log to print.

    Raises:
        UsageError: the command failed. The message has the end of the log.
        KeyboardInterrupt: the user interrupted the command.
    """
    state.unlink(missing_ok=True)
    start = time.monotonic()
    with (
        log.open("w") as output,
        _display(title, shown) as display,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(0.2)
                display.show(_read(state))
            display.show(_read(state))
        finally:
            _end(process)
        if not process.returncode:
            display.finish(time.monotonic() - start)
    if process.returncode:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        text = f"{title} failed with exit code {process.returncode}, see {shown}:"
        raise UsageError("\n".join([text, *tail]))


def describe(state: dict) -> str:
    """Say in words how far a step is.

    Args:
        state: object that :class:`mmlocal.engine.progress.ProgressHook` writes.
    """
    parts = []
    if state["phase"] != "test":
        parts.append(
            f"epoch {state['epoch']} of {state['epochs']}"
            if state.get("epoch")
            else f"step {state['done']} of {state['total']}"
            if state["phase"] == "train"
            else ""
        )
    if state["phase"] == "val":
        parts.append("validating")
    if state["phase"] != "train":
        parts.append(f"{state['done']} of {state['total']} images")
    if state.get("loss") is not None:
        parts.append(f"loss {state['loss']:.3f}")
    if state["phase"] == "test" and state["done"] == state["total"]:
        parts.append("computing the metrics")
    elif state.get("seconds_left") is not None:
        parts.append(f"{_duration(state['seconds_left'])} left")
    return ", ".join(filter(None, parts))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class _Lines:
    """Prints a line at the start of a step, and for each tenth of it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._last = -1

    def show(self, state: dict | None) -> None:
        if state is None or state["phase"] == "val":
            return
        tenth = _LINES * state["done"] // state["total"]
        if tenth > self._last:
            self._last = tenth
            print(f"{self.title} {10 * tenth:3d} %  {describe(state)}", flush=True)

    def finish(self, seconds: float) -> None:
        print(f"{self.title} done in {_duration(seconds)}", flush=True)


class _Bar:
    """Updates one line on a terminal."""

    def __init__(self, title: str, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task(title, total=None, state="starting")

    def show(self, state: dict | None) -> None:
        if state is None:
            return
        text = describe(state)
        if state["phase"] == "val":  # the bar shows the training
            self.progress.update(self.task, state=text)
        else:
            self.progress.update(
                self.task, total=state["total"], completed=state["done"], state=text
            )

    def finish(self, seconds: float) -> None:
        self.progress.update(self.task, total=1, completed=1, state=f"done in {_duration(seconds)}")


@contextmanager
def _display(title: str, log: str) -> Iterator[_Bar | _Lines]:
    console = Console()
    print(f"{title}: details are in {log}", flush=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=console) as progress:
        yield _Bar(title, progress)


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def _end(process: subprocess.Popen) -> None:
    """End a process, gently first. A terminal has sent it the user's interrupt already."""
    stops: list[Callable[[], None]] = [process.terminate, process.kill]
    if os.name == "posix":  # elsewhere, Python cannot interrupt one process alone
        stops.insert(0, lambda: process.send_signal(signal.SIGINT))
    for stop in stops:
        if process.poll() is not None:
            return
        stop()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def ends_like_an_interrupt() -> Iterator[None]:
    """Treat SIGTERM in the block as an interrupt, so that a child process ends too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

"""Run items in processes of their own, so that no crash, hang or broken GPU reaches the others.

The processes are forks, which have all modules from the start. So the main process must never use
the GPU, nor compute with several threads.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

# A process that has ended gets this long to be gone, in seconds.
_GONE = 10.0


@dataclass(frozen=True)
class Item:
    """One piece of work.

    Args:
        name: name of the item.
        call: function that can be pickled. It returns or yields rows, which are dicts.
        seconds: most seconds that the item may take.
        fresh: whether the item gets a process that ran no other item.
    """

    name: str
    call: Callable[[], Iterable[dict]]
    seconds: float = 90.0
    fresh: bool = False


Report = Callable[[Item, dict], None]


@dataclass
class _Worker:
    """A process, and the item that it works at."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    item: Item
    until: float

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join(_GONE)


def run_items(items: Sequence[Item], workers: int, deadline: float, report: Report) -> None:
    """Run items in order, several at a time.

    A process runs one item after the other. After an error, another process takes its place,
    because an error may leave the GPU unusable in the process where it came up.

    Args:
        items: the work.
        workers: number of items that run at the same time.
        deadline: time of ``time.monotonic()`` at which the work ends.
        report: function that gets each row as soon as it is there. An item that ends in an error, a
            crash or after its ``seconds`` gives a row with ``failed``. An item that the deadline
            cuts or leaves out gives a row with ``left_out``. Both hold the reason.
    """
    waiting, busy, idle = deque(items), list[_Worker](), list[_Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers and time.monotonic() < deadline:
                busy.append(_give(waiting.popleft(), idle, deadline))
            if not busy:
                break
            patience = min(worker.until for worker in busy) - time.monotonic()
            ready = wait([worker.connection for worker in busy], max(0.0, patience))
            for worker in list(busy):
                if worker.connection in ready:
                    row = _next_row(worker)
                elif time.monotonic() >= worker.until:
                    row = _too_late(worker, deadline)
                else:
                    continue
                if row is not None:
                    report(worker.item, row)
                    if not {"failed", "left_out"} & row.keys():
                        continue
                busy.remove(worker)
                if row is None and not worker.item.fresh:
                    idle.append(worker)
                else:
                    worker.end()
        for item in waiting:
            report(item, dict(left_out="the time was up"))
    finally:
        for worker in (*busy, *idle):
            worker.end()


def _give(item: Item, idle: list[_Worker], deadline: float) -> _Worker:
    until = min(deadline, time.monotonic() + item.seconds)
    if idle and not item.fresh:
        worker = idle.pop()
        worker.item, worker.until = item, until
    else:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, ours), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, item, until)
    worker.connection.send(item)
    return worker


def _next_row(worker: _Worker) -> dict | None:
    """The next row of a worker; ``None`` at the end of its item."""
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join(_GONE)
        return dict(failed=f"its process ended with exit code {worker.process.exitcode}")


def _too_late(worker: _Worker, deadline: float) -> dict:
    if worker.until == deadline:
        return dict(left_out="the time was up before it ended")
    return dict(failed=f"did not end in {worker.item.seconds:g} s")


def _work(connection: Connection, other_end: Connection) -> None:
    """Run the items that arrive, until one fails or the main process is gone."""
    other_end.close()  # a copy of the main process's end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        while True:
            for row in _rows(connection.recv()):
                connection.send(row)
                if row is not None and "failed" in row:
                    return
    except (EOFError, OSError):  # the main process is gone
        return


def _rows(item: Item) -> Iterator[dict | None]:
    """The rows of an item, and ``None`` or its error at the end."""
    try:
        yield from item.call()
    except Exception as error:
        text = f"{type(error).__name__}: {error}".strip()
        yield dict(failed=text[:500], traceback=traceback.format_exc()[-4000:])
    else:
        yield None

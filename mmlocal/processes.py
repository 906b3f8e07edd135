"""Work for several processes of this computer, which end with the process that starts them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Result, None, None]:
    """Apply a function to each item in several processes.

    Args:
        function: a function that can be pickled.
        items: its arguments, which can be pickled.
        workers: number of processes; this process does the work if it is below 2.

    Yields:
        The results, in the order of the items.

    Note:
        The processes are started afresh, so they inherit no state of a GPU and no locks of threads.
        They end with this process, however it ends. A script that calls this function at import
        needs ``if __name__ == "__main__":``, as for any such process.
    """
    if workers < 2:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield from pool.map(function, items)
    finally:  # after an interrupt, only items in work are finished
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Share the cores that this process may use among the processes of a distributed job."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (usable or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _start_worker() -> None:
    """Leave interrupts to the main process, use one core, and end with the main process."""
    import cv2  # not at import of this module, which most commands load

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

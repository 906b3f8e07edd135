"""What all tests share."""

import gc
import os
from collections import Counter

import torch

# The tensors of the tests are small: more threads only get into each other's way.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list) -> None:
    """Put files with slow tests first where processes share the files.

    The last files are short then, so that no process waits long for another one.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])  # the order within a file stays


def pytest_collection_finish() -> None:
    """Keep what is imported out of ``gc.collect``, which each data set of MMEngine calls."""
    gc.freeze()

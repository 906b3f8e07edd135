"""What all tests share."""

import gc
import os
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

try:
    from mmengine.registry import DefaultScope
except ImportError:  # ops need no MMEngine
    DefaultScope = None

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


@pytest.fixture(autouse=True, scope="module")
def default_scope() -> Iterator[None]:
    """Start each file in the scope of MMEngine, whatever scope an earlier file has left.

    Without this, a test may pass or fail depending on the order of the files. A test whose models
    need another scope enters it by ``DefaultScope.overwrite_default_scope``. MMEngine has no way
    back to no scope at all, in which a script starts.
    """
    if DefaultScope is None:
        yield
    else:
        with DefaultScope.overwrite_default_scope("mmengine"):
            yield

"""Files and folders that appear under their names only when they are complete.

This module imports the standard library only.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, content: bytes | memoryview | str) -> None:
    """Write or replace a file. It appears under its name only when it is complete.

    Args:
        path: the file to write. Its folder must exist.
        content: the whole content. Text is written as UTF-8.

    Raises:
        OSError: the file cannot be written. An earlier file stays as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def only_user_of(folder: Path) -> Iterator[bool]:
    """Hold a folder, so that no other process that asks gets it. The end of the process frees it.

    Args:
        folder: the folder. It must exist; it gets a hidden, empty file.

    Yields:
        Whether no other process holds the folder. Always true on systems without POSIX locks.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def whole_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder. It appears under its name only when the block ends without error.

    An error or an interrupt in the block leaves nothing behind. A killed process leaves a hidden
    folder next to ``path``. Several processes may write the same folder. Without ``overwrite``, the
    first process to finish wins.

    Args:
        path: the folder to make. Missing parents are made.
        overwrite: whether to replace an existing folder. The old one stays until the new one is
            complete.

    Yields:
        An empty folder to fill.

    Raises:
        OSError: the folder cannot be written, or ``path`` exists and is not empty while
            ``overwrite`` is False. An earlier folder stays as it was.
    """
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as stage:
        new, old = Path(stage, "new"), Path(stage, "old")
        new.mkdir()
        yield new
        try:
            if overwrite:
                with contextlib.suppress(FileNotFoundError):
                    path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise

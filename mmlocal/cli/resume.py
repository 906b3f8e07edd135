"""Find and check the checkpoint that a run starts from."""

import os
import os.path as osp
import zipfile
from pathlib import Path

from mmlocal.checkpoints import find_file, load_file
from mmlocal.cli.tool import warn
from mmlocal.errors import UsageError


def check_checkpoint(path: str | None, what: str) -> None:
    """Raise unless ``path`` is a readable checkpoint or has a scheme (``torchvision://``).

    MMEngine may load a checkpoint in a way that can run code from it. So a checkpoint that is not
    plain data is refused before MMEngine sees it.

    Args:
        path: file, folder with a checkpoint, URL or ``None``; ``None`` and URLs are not checked.
        what: noun for the message, such as ``"checkpoint"``.

    Raises:
        UsageError: there is no such file, PyTorch did not write it, or it holds foreign objects.
            Only in the last case does the message say how to load it all the same.
    """
    if not path or "://" in path:
        return
    try:
        file = find_file(path)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{what}: {error}") from error
    if not file.is_file():
        raise UsageError(f"{what} {path!r} is not a file")
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1") != "0":
        try:
            load_file(file)
        except ImportError as error:
            raise UsageError(f"{what}: {error}") from error
        except ValueError as error:
            advice = ""
            if "it refers to " in str(error) and _is_of_torch(file):
                advice = ". If you trust it, set TORCH_FORCE_WEIGHTS_ONLY_LOAD=0 and repeat"
            raise UsageError(f"{what}: {error}{advice}") from error


def find_last_checkpoint(work_dir: str) -> str | None:
    """Find the checkpoint to resume from after the folder of a run was moved or renamed.

    MMEngine reads the absolute path in the file ``last_checkpoint``. If nothing is at this path,
    this function takes the checkpoint of the same name in ``work_dir``.

    Args:
        work_dir: folder of the run.

    Returns:
        Path of the checkpoint. ``None`` if MMEngine finds it by itself, or if there is no
        ``last_checkpoint``.

    Raises:
        UsageError: neither path is a readable checkpoint. The message names other checkpoints in
            ``work_dir``.
    """
    pointer = Path(work_dir, "last_checkpoint")
    if not pointer.is_file():
        return None
    last = pointer.read_text().strip()
    beside = Path(work_dir, Path(last).name) if last else None
    moved = beside is not None and not osp.isfile(osp.expanduser(last)) and beside.is_file()
    try:
        if not last:
            raise UsageError("the file is empty")
        check_checkpoint(str(beside) if moved else last, "checkpoint")
    except UsageError as error:
        others = [path for path in Path(work_dir).glob("*.pth") if path.name != Path(last).name]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        offer = f"--resume {' or '.join(map(str, others))}" if others else "no other one is there"
        raise UsageError(
            f"{pointer} does not lead to a checkpoint to resume from: {error}. Instead: {offer}"
        ) from error
    if not moved:
        return None
    warn(f"{last} of {pointer} is gone; resuming from {beside}, which has the same name")
    return str(beside)


def _is_of_torch(path: Path) -> bool:
    """Whether ``torch.save`` wrote a file: a ZIP archive with a pickle, or an old bare pickle."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(osp.basename(name) == "data.pkl" for name in archive.namelist())
    with open(path, "rb") as file:
        return file.read(2) == b"\x80\x02"

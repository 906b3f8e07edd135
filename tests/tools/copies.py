"""Python programs that start with PyTorch and MMEngine imported already.

The tests start hundreds of short programs, and each would spend seconds on imports. So a program
starts as a copy of one process that has imported what all of them need. No library is among this
(mmdet, mmseg, mmpretrain), because a program has to import its library by itself. What the
libraries need of other packages is.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("torch", "torchvision", "matplotlib.pyplot", "mmengine.runner", "mmcv.ops"),
        *("imagecorruptions", "imgaug", "scipy.optimize", "scipy.stats", "timm"),
    ]
)


def run_copy(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess:
    """Run ``python FILE ARGUMENTS``, or the command ``mmlocal``, as ``subprocess.run`` does.

    Args:
        command: file or ``mmlocal``, and arguments.
        cwd: working directory.
        env: all environment variables of the program. Its folders of ``PYTHONPATH`` are searched
            first. Other variables that Python reads as it starts have no effect.
        timeout: seconds after which the program is killed.

    Returns:
        The exit code and the output as text.

    Raises:
        subprocess.TimeoutExpired: the program took longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        args = ([*command], str(cwd), dict(env), [str(file) for file in files])
        process = _SERVER.Process(target=_program, args=args)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([*command], timeout)
        out, err = (file.read_text() for file in files)
    return subprocess.CompletedProcess([*command], process.exitcode, out, err)


def _program(command: list[str], cwd: str, env: dict[str, str], files: list[str]) -> None:
    import torch

    for number, name in enumerate(files, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    gc.freeze()  # each data set of MMEngine calls gc.collect, which takes long for what is imported
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = command
    try:
        if command[0] == "mmlocal":
            from mmlocal.cli import main

            main()
        else:
            sys.path.insert(0, str(Path(command[0]).parent))
            runpy.run_path(command[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # a copy leaves without them

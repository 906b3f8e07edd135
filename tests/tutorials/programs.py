"""Run commands as a shell does, but with PyTorch and MMEngine imported already.

The pages of the tutorials have dozens of short commands, and each would spend seconds on imports.
So they start as copies of one process that has imported what all of them need. No library is among
this (mmdet, mmseg, mmpretrain), because a command has to import its library by itself.
"""

import multiprocessing
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import mmlocal

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["torch", "torchvision", "matplotlib.pyplot", "mmengine.runner", "mmcv.ops"]
)
_SECONDS = 600  # the longest that a command may take


def run_bash(block: str, folder: Path) -> tuple[int, str]:
    """Run lines of bash until one fails.

    Lines with ``mmlocal`` or ``python FILE`` start as copies. Bash runs all other lines, and also a
    block that needs more of a shell than one command in a line.

    Args:
        block: the lines.
        folder: working directory.

    Returns:
        The exit code and the output.
    """
    lines = block.replace("\\\n", " ").splitlines()
    if not all(map(_is_one_command, lines)):
        return _run(["bash", "-e"], block, folder)
    code, output = 0, ""
    for line in lines:
        words = shlex.split(line)
        if words[:1] in (["mmlocal"], ["python"]):
            code, text = _run_copy(words, folder)
        else:
            code, text = _run(["bash", "-e"], line, folder)
        output += text
        if code:
            break
    return code, output


def _is_one_command(line: str) -> bool:
    """Whether a line has nothing that only a shell understands. Quotes are fine."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    return not any(set(word) <= set("();<>|&") for word in words) and not set(line) & set("$`*{")


def run_python(block: str, folder: Path) -> tuple[int, str]:
    """Run lines of Python, as :func:`run_bash` runs lines of bash."""
    return _run([sys.executable, "-"], block, folder)


def _run(command: list[str], text: str, folder: Path) -> tuple[int, str]:
    result = subprocess.run(
        command,
        input=text,
        cwd=folder,
        env={**os.environ, **_environment(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
    )
    return result.returncode, result.stdout


def _run_copy(words: list[str], folder: Path) -> tuple[int, str]:
    log = folder.with_name(f"{folder.name}.log")
    process = _SERVER.Process(target=_program, args=(words, folder, log, _environment(folder)))
    process.start()
    process.join(_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode or 0, log.read_text()


def _program(words: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
    """The copy: it does what the command ``mmlocal``, or Python itself, does with its arguments."""
    import torch

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if words[0] == "mmlocal":
        sys.argv = words
        from mmlocal.cli import main

        main()
    else:
        sys.argv = words[1:]
        sys.path.insert(0, str(folder))
        runpy.run_path(words[1], run_name="__main__")


def _environment(folder: Path) -> dict[str, str]:
    """The commands that a reader has: ``mmlocal``, ``python`` and ``torchrun``."""
    programs = folder.with_name(f"{folder.name}_bin")
    if not programs.exists():
        programs.mkdir()
        command = programs / "mmlocal"
        # As pip writes it. Unlike `python -m mmlocal`, it does not look for modules in the folder.
        command.write_text(f"#!{sys.executable}\nfrom mmlocal.cli import main\nmain()\n")
        command.chmod(0o755)
    paths = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": str(Path(mmlocal.__file__).parents[1]),
    }

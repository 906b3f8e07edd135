"""Run commands as a shell does, but with PyTorch and MMEngine imported already."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tools.copies import run_copy

import mmlocal

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
    file = words[1:] if words[0] == "python" else words
    done = run_copy(file, folder, {**os.environ, **_environment(folder)}, _SECONDS)
    return done.returncode, done.stdout + done.stderr


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

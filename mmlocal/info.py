"""``mmlocal info``: print versions, what can run here, and how to mend the rest.

It is made for bug reports, so it never fails. It reports each part that is missing or broken.
``python -m mmlocal.info`` is the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

from mmlocal import compatibility
from mmlocal.cli import program
from mmlocal.libraries import LIBRARIES
from mmlocal.version import __version__


def program_version(*command: str) -> str:
    """The first line with a version in the output of a command, or a note that it does not run.

    Args:
        *command: name of the program and its arguments.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return f"{command[0]} does not run"
    return next((x.strip() for x in done.stdout.splitlines() if re.search(r"\d\.\d", x)), "unknown")


def library_line(name: str) -> str:
    """Import a library, and return its version, its distribution and the verdict on this version.

    Args:
        name: key of :data:`mmlocal.compatibility.SUPPORT`.
    """
    try:
        if importlib.util.find_spec(name) is None:
            return "not installed"
        compatibility.import_quietly(name)
        version = str(sys.modules[name].__version__)
    except Exception as error:  # a broken installation can raise anything
        return f"does not import: {type(error).__name__}: {error}"
    others = [d for d in compatibility.distributions().get(name, ()) if d != name]
    origin = f" ({', '.join(others)})" if others else ""
    return f"{version}{origin}: {_verdict(name, version)}"


def _verdict(name: str, version: str) -> str:
    """The verdict on a version, and the tested version if it differs."""
    words = {
        compatibility.TESTED: "tested",
        compatibility.EXPECTED: "expected to work, tested is {}",
        compatibility.NO: "does not work, tested is {}",
    }
    tested = ", ".join(compatibility.SUPPORT[name].tested)
    return words[compatibility.version_verdict(name, version)].format(tested)


def ops_line() -> str:
    """Whether mmcv's compiled ops load, and whether they can run on a GPU."""
    try:
        import mmcv._ext as ext
    except Exception as error:
        return f"not there: {type(error).__name__}: {error}"
    cuda = ext.get_compiling_cuda_version()
    return "CPU only" if cuda == "not available" else f"CPU and CUDA {cuda}"


def extension_line() -> str:
    """Whether our C++ kernels load, and how many threads they use."""
    try:
        import torch

        from mmlocal.ops.extension import extension, unavailable_reason
    except Exception as error:
        return f"unknown, the ops do not import: {type(error).__name__}: {error}"
    if extension is None:
        return f"not there: {unavailable_reason}"
    threads, possible = extension.threads(), torch.get_num_threads()
    without = f"; torch has {possible} and no OpenMP runtime to share" if threads < possible else ""
    return f"{threads} thread{'s' * (threads > 1)}{without}"


def gpu_line() -> str:
    """The GPUs that torch sees, or why it sees none."""
    try:
        import torch
    except Exception as error:
        return f"unknown, torch does not import: {error}"
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return f"none visible; torch is built for CUDA {torch.version.cuda}"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; torch is built for CUDA {torch.version.cuda}"


def versions() -> dict[str, str]:
    """Map the name of each part of this installation to its version and state."""
    python = platform.python_version()
    system = {
        compatibility.TESTED: "tested",
        compatibility.EXPECTED: "not tested, expected to work",
    }
    report = {
        "mmlocal": __version__,
        "system": f"{platform.platform()}: {system[compatibility.system_verdict()]}",
        "Python": f"{python}: {_verdict('Python', python)}",
    }
    report |= {name: library_line(name) for name in compatibility.SUPPORT if name != "Python"}
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    report["mmcv._ext"] = ops_line()
    report["mmlocal._C"] = extension_line()
    report["GPU"] = gpu_line()
    report["C++ compiler"] = program_version(*compiler, "--version")
    report["nvcc"] = program_version("nvcc", "--version")
    return report


def backends() -> list[dict[str, str]]:
    """Make one row for each op and backend, with its capabilities.

    Returns:
        Rows with the same keys. ``"runs here"`` is ``"yes"`` or the reason why the backend cannot
        run here.

    Raises:
        ImportError: torch is missing or broken.
    """
    from mmlocal.ops import OPS

    def short(dtype: object) -> str:
        return str(dtype).removeprefix("torch.")

    return [
        {
            "op": op.name,
            "backend": backend.name,
            "what": backend.description,
            "devices": ", ".join(backend.devices),
            "dtypes and largest error": ", ".join(
                f"{short(dtype)} {backend.atol[dtype]:.2g}" for dtype in backend.dtypes
            ),
            "deterministic": "yes" if backend.deterministic else "no",
            "runs here": backend.unavailable_reason() or "yes",
        }
        for op in OPS.values()
        for backend in op.backends
    ]


def libraries() -> list[str]:
    """Say for each library whether its configs can run here, and if not, how to mend it."""
    return [library.why_not() or f"{name} can train here" for name, library in LIBRARIES.items()]


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Format rows as a Markdown table.

    Args:
        rows: at least one dict; all have the same keys, the header.
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def aligned_table(rows: list[dict[str, str]]) -> str:
    """Format rows as a table for a terminal.

    Args:
        rows: at least one dict; all have the same keys, the header.
    """
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("info"),
        description="Print versions, what can run here, and how to mend the rest.",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--table", action="store_true", help="print only the backends, as Markdown")
    only.add_argument(
        "--compatibility",
        action="store_true",
        help="print only the versions that are tested, expected to work or known to fail, as "
        "Markdown",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: the arguments of this process."""
    args = parse_args(argv)
    if args.compatibility:
        print(markdown_table(compatibility.table()))
        return
    if not args.table:
        for name, text in versions().items():
            print(f"{name:13} {text}")
        print("", *libraries(), "", aligned_table(compatibility.table()), "", sep="\n")
    try:
        rows = backends()
    except Exception as error:
        print(f"ops do not import: {type(error).__name__}: {error}")
        return
    if args.table:
        print(markdown_table(rows))
        return
    for row in rows:
        state = "runs here" if row["runs here"] == "yes" else f"cannot run: {row['runs here']}"
        print(f"{row['op']}, backend {row['backend']} ({row['what']}): {state}")


if __name__ == "__main__":
    main()

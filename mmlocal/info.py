"""``python -m mmlocal.info``: versions, which backends run each op here, and why others do not.

Made for bug reports: nothing that is missing or broken makes it fail. ``--table`` prints what the
backends support as a Markdown table.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shlex
import subprocess
from importlib import metadata

from mmlocal.version import __version__

# What the tests run with: the pins in requirements/. ``None``: comes with torch, not pinned.
TESTED = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "triton": None,
    "numpy": "2.2.6",
    "cv2": "4.12.0",
    "mmengine": "0.10.12",
    "mmcv": "2.3.6",
    "mmdet": "3.5.1",
    "mmseg": "1.4.2",
    "mmpretrain": "1.3.6",
}


def program_version(*command: str) -> str:
    """The first line with a version in it that a command prints, or that there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return f"{command[0]} does not run"
    return next((x.strip() for x in done.stdout.splitlines() if re.search(r"\d\.\d", x)), "unknown")


def library_line(name: str, tested: str | None) -> str:
    """Version, distribution and state of one library, found by import and not by distribution."""
    if importlib.util.find_spec(name) is None:
        return "not installed"
    try:
        version = importlib.import_module(name).__version__
    except Exception as error:  # whatever a broken installation raises belongs in the report
        return f"does not import: {type(error).__name__}: {error}"
    distributions = sorted(set(metadata.packages_distributions().get(name, [])) - {name})
    origin = f" ({', '.join(distributions)})" if distributions else ""
    # A local label such as +cpu names a build of the same version.
    untested = tested is not None and version.partition("+")[0] != tested
    return version + origin + (f"; not tested, the tests run with {tested}" if untested else "")


def ops_line() -> str:
    """Whether mmcv's compiled ops load, and whether they run on a GPU."""
    try:
        import mmcv._ext as ext
    except Exception as error:
        return f"not there: {type(error).__name__}: {error}"
    cuda = ext.get_compiling_cuda_version()
    return "CPU only" if cuda == "not available" else f"CPU and CUDA {cuda}"


def extension_line() -> str:
    """Whether our C++ extension loads, and how many threads it has."""
    try:
        import torch

        from mmlocal.ops.extension import extension, unavailable_reason
    except Exception as error:
        return f"unknown, the ops do not import: {type(error).__name__}: {error}"
    if extension is None:
        return f"not there: {unavailable_reason}"
    if not hasattr(extension, "threads"):
        return "of an older version of mmlocal: build it again"
    threads, possible = extension.threads(), torch.get_num_threads()
    without = f"; torch has {possible}: it was built without OpenMP" if threads < possible else ""
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
    """Findings about this installation, by name."""
    report = {
        "mmlocal": __version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
    }
    report |= {name: library_line(name, tested) for name, tested in TESTED.items()}
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    report["mmcv._ext"] = ops_line()
    report["mmlocal._C"] = extension_line()
    report["GPU"] = gpu_line()
    report["C++ compiler"] = program_version(*compiler, "--version")
    report["nvcc"] = program_version("nvcc", "--version")
    return report


def backends() -> list[dict[str, str]]:
    """One row per op and backend: what it supports, and ``yes`` or why it does not run here.

    Raises:
        ImportError: torch is missing or broken.
    """
    from mmlocal.ops.backends import list_ops

    def short(dtype: object) -> str:
        return str(dtype).removeprefix("torch.")

    return [
        {
            "op": op,
            "backend": backend.name,
            "what": backend.description,
            "devices": ", ".join(backend.devices),
            "dtypes and largest error": ", ".join(
                f"{short(dtype)} {backend.atol[dtype]:.2g}" for dtype in backend.dtypes
            ),
            "deterministic": "yes" if backend.deterministic else "no",
            "runs here": backend.unavailable_reason() or "yes",
        }
        for op, candidates in list_ops().items()
        for backend in candidates
    ]


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the report; ``arguments`` are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m mmlocal.info", description=__doc__)
    parser.add_argument("--table", action="store_true", help="only the backends, as Markdown")
    table = parser.parse_args(arguments).table
    if not table:
        for name, text in versions().items():
            print(f"{name:13} {text}")
    try:
        rows = backends()
    except Exception as error:
        print(f"\nops do not import: {type(error).__name__}: {error}")
        return
    if table:
        print(markdown_table(rows))
        return
    print()
    for row in rows:
        state = "runs here" if row["runs here"] == "yes" else f"cannot run: {row['runs here']}"
        print(f"{row['op']}, backend {row['backend']} ({row['what']}): {state}")


if __name__ == "__main__":
    main()

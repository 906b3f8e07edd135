"""The scripts of the benchmarks, as modules and as processes."""

import importlib.util
import os
import types
from pathlib import Path

from tools.copies import run_copy

ROOT = Path(__file__).parents[2]
# Keys of the figures of one contestant.
TIMES = {"quartile1_ms", "median_ms", "quartile3_ms", "min_ms", "samples"}


def load_tool(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(name: str, *arguments: str | Path, **env: str) -> str:
    command = [str(ROOT / "tools" / name), *map(str, arguments)]
    done = run_copy(command, ROOT, {**os.environ, "OMP_NUM_THREADS": "1", **env}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout

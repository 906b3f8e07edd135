"""The scripts of the benchmarks, as modules and as processes."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Keys of the figures of one contestant.
TIMES = {"quartile1_ms", "median_ms", "quartile3_ms", "min_ms", "samples"}


def load_tool(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(name: str, *arguments: str | Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

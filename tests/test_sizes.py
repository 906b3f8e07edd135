"""Files stay small enough to read from top to bottom."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Most lines of a file.
LIMITS = {
    "mmlocal/ops/**/*.py": 300,
    "mmlocal/ops/csrc/*": 400,
    "mmlocal/layers/*.py": 250,
    "mmlocal/models/backbones/*.py": 400,
    "mmlocal/**/*.py": 400,
    "benchmarks/*.py": 400,
    "tools/*.py": 400,
}


@pytest.mark.parametrize("pattern", LIMITS)
def test_files_are_short(pattern):
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in ROOT.glob(pattern)
        if path.is_file()
    }
    assert lines
    assert {path: n for path, n in lines.items() if n > LIMITS[pattern]} == {}

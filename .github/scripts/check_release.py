"""Check that all files of a release name one version: check_release.py TAG."""

import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def problems(tag: str) -> list[str]:
    """List what does not fit a tag.

    Args:
        tag: name of the tag, such as ``v0.1.0``.
    """
    version = runpy.run_path(str(ROOT / "mmlocal" / "version.py"))["__version__"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    found = []
    if tag != f"v{version}":
        found.append(f"mmlocal/version.py has {version}, so the tag must be v{version}, got {tag}")
    if not re.search(rf"^## \[?{re.escape(version)}\]?", changelog, re.M):
        found.append(f"CHANGELOG.md has no heading of {version}: rename Unreleased")
    if not re.search(rf"^version: {re.escape(version)}$", citation, re.M):
        found.append(f"CITATION.cff does not have version: {version}")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit("\n".join(problems(sys.argv[1])) or None)

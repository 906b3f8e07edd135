"""Files around the package: workflows, forms, licence notices, citation, and a release's checks."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mmlocal

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
ACTION = GITHUB / "actions" / "setup" / "action.yml"
FORMS = sorted(set(GITHUB.glob("ISSUE_TEMPLATE/*.yml")) - {GITHUB / "ISSUE_TEMPLATE/config.yml"})
MAKEFILE = (ROOT / "Makefile").read_text()


def read(path: Path) -> dict:
    # BaseLoader keeps `on` a word, and "3.10" what it is.
    return yaml.load(path.read_text(), yaml.BaseLoader)


def by_name(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.name)


def steps_of(workflow: dict) -> list[dict]:
    jobs = workflow["jobs"].values() if "jobs" in workflow else [workflow["runs"]]
    return [step for job in jobs for step in job["steps"]]


def test_the_files_are_there():
    assert [path.stem for path in WORKFLOWS] == ["docs", "lint", "tests", "wheels"]
    assert [path.stem for path in FORMS] == ["bug", "feature"]


@by_name(WORKFLOWS)
def test_workflow(path):
    workflow = read(path)
    assert workflow["name"] == path.stem
    assert workflow["on"]
    # No token may do more than its job needs.
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job or name == "deploy", name
        assert re.fullmatch(r"ubuntu-24\.04|\$\{\{ matrix\.runner \}\}", job["runs-on"])
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(workflow["jobs"])


@by_name([*WORKFLOWS, ACTION])
def test_steps(path):
    """They name targets of the Makefile, files of the repository, and versions of actions."""
    for step in steps_of(read(path)):
        assert ("uses" in step) != ("run" in step)
        if (used := step.get("uses", "")).startswith("./"):
            assert (ROOT / used / "action.yml").is_file()
        elif used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", used)
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
            assert re.search(rf"^{target}:", MAKEFILE, re.M), target
        for script in re.findall(r"\.github/scripts/[\w.]+", step.get("run", "")):
            assert (ROOT / script).is_file()


def test_matrix_has_the_tested_versions():
    (job,) = (j for n, j in read(GITHUB / "workflows/tests.yml")["jobs"].items() if n == "tests")
    classifiers = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', classifiers)
    assert job["strategy"]["matrix"]["python-version"] == named


def test_only_a_tag_publishes():
    jobs = read(GITHUB / "workflows/wheels.yml")["jobs"]
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'"
    assert set(jobs["publish"]["needs"]) == {"sdist", "try"}
    with_tokens = [name for name, job in jobs.items() if "permissions" in job]
    assert with_tokens == ["publish"]


@by_name(FORMS)
def test_form(path):
    form = read(path)
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


def test_bug_form_asks_for_info():
    fields = {field["id"]: field for field in read(GITHUB / "ISSUE_TEMPLATE/bug.yml")["body"]}
    assert "mmlocal info" in fields["info"]["attributes"]["label"]
    assert fields["info"]["validations"]["required"] == "true"


@by_name([*GITHUB.rglob("*.yml"), *GITHUB.rglob("*.md")])
def test_addresses(path):
    """Every address of this project is at its home."""
    own = re.findall(r"https://[^\s)>\"']*mmlocal[^\s)>\"']*", path.read_text())
    assert all(url.startswith("https://github.com/mmlocal/mmlocal") for url in own)


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == mmlocal.__version__
    assert citation["license"] == "Apache-2.0"
    assert citation["authors"]
    for reference in citation["references"]:
        assert reference["authors"]
        assert {"type", "title", "year", "url", "scope"} <= set(reference)
    # Each paper of the configs is cited.
    cited = {reference["url"] for reference in citation["references"]}
    for metafile in (ROOT / "configs").glob("*/metafile.yml"):
        for collection in yaml.safe_load(metafile.read_text()).get("Collections", []):
            assert collection["Paper"]["URL"] in cited, collection["Name"]


def test_notice_names_every_official_code():
    """Each repository that a docstring calls official code, with the licence given there."""
    notice = (ROOT / "NOTICE").read_text()
    found = set()
    for path in (ROOT / "mmlocal").rglob("*.py"):
        text = " ".join(path.read_text().split())
        found |= set(re.findall(r"official (?:JAX )?code ([\w-]+/[\w-]+)(?: \(([\w.-]+)\))?", text))
    assert len(found) > 4
    for repository, licence in found:
        (line,) = (line for line in notice.splitlines() if f"github.com/{repository} " in line)
        assert line.endswith(licence or ""), repository


def test_release_check(tmp_path):
    script = (GITHUB / "scripts" / "check_release.py").read_text()
    copy = tmp_path / ".github" / "scripts" / "check_release.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(script)
    (tmp_path / "mmlocal").mkdir()
    (tmp_path / "mmlocal" / "version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-12-01)\n")
    (tmp_path / "CITATION.cff").write_text("version: 1.2.3\n")
    problems = runpy.run_path(str(copy))["problems"]
    assert problems("v1.2.3") == []
    (found,) = problems("v1.2.4")
    assert "so the tag must be v1.2.3, got v1.2.4" in found
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    (tmp_path / "CITATION.cff").write_text("version: 1.2.30\n")
    assert len(problems("v1.2.3")) == 2
    done = subprocess.run([sys.executable, copy, "v1.2.3"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == problems("v1.2.3")


def test_no_host_of_a_registry():
    """Users choose their package index."""
    for path in [*WORKFLOWS, ACTION, *(GITHUB / "scripts").iterdir(), ROOT / "pyproject.toml"]:
        assert not re.search(r"\b(pypi\.org|pythonhosted|test\.pypi)", path.read_text()), path

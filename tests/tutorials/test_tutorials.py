"""Each page of docs/tutorials works as it is written."""

import re
from pathlib import Path

import pytest
import torch
from pages import FOLDER, Block, Page, follow, missing_line, read_page
from programs import run_bash

# Page -> files that a reader has at its end.
TUTORIALS = {
    "own_detection_data.md": [
        "browsed/000003_*.jpg",
        "work_dirs/my_detector/*/pictures/*.jpg",
        "predicted/vis/000001.jpg",
        "predicted/preds/000001.json",
    ],
    "own_classification_data.md": [
        "browsed/000003_*.jpg",
        "predictions.pkl",
        "predicted/*",
    ],
    "fine_tuning.md": ["work_dirs/nine_classes/*.pth", "work_dirs/fine_tuned/*.pth"],
    "someone_elses_config.md": ["stock/mmdet/retinanet", "work_dirs/ours/epoch_1.pth"],
    "several_machines.md": ["work_dirs/my_job/*.pth", "work_dirs/my_sharded_job/*.pth"],
    "multitask.md": [
        "checked/contact_sheet.png",
        "work_dirs/pictures/vis_data/vis_image/*.png",
        "predicted.png",
    ],
    "compare_operators.md": [
        "work_dirs/operators/operators.png",
        "work_dirs/operators/summary.json",
    ],
}
LIBRARIES = ("mmdet", "mmpretrain", "mmseg")


def read(name: str) -> Page:
    return read_page((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A function that follows a page, after the page that it goes on from, and returns its folder.

    Each page is followed once.
    """
    for library in LIBRARIES:
        pytest.importorskip(library)
    folders: dict[str, Path] = {}

    def follow_once(name: str) -> Path:
        if name not in folders:
            page = read(name)
            own = tmp_path_factory.mktemp(Path(name).stem)
            folder = follow_once(page.after) if page.after else own
            follow(page, folder)
            folders[name] = folder
        return folders[name]

    return follow_once


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_page(name, followed):
    folder = followed(name)
    assert [path for path in TUTORIALS[name] if not list(folder.glob(path))] == []


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="torchrun takes one GPU per process")
def test_fsdp_trains_like_ddp(followed):
    """The two jobs of the page differ only in the strategy, and see the same pictures."""
    folder = followed("several_machines.md")
    weights = [
        torch.load(folder / f"work_dirs/{job}/epoch_1.pth", weights_only=False)["state_dict"]
        for job in ("my_job", "my_sharded_job")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-6)


def test_every_page_is_followed():
    pages = {path.name for path in FOLDER.glob("*.md")}
    assert pages == {"index.md", *TUTORIALS}, "a page has no line in TUTORIALS, or the other way"
    index = (FOLDER / "index.md").read_text()
    for name in TUTORIALS:
        assert f"]({name})" in index
        assert f"\n{Path(name).stem}\n" in index
    assert read("index.md").blocks == []


@pytest.mark.parametrize("name", TUTORIALS)
def test_blocks(name):
    """A page runs something, shows output of something, and changes numbers that are there."""
    page = read(name)
    kinds = [block.kind for block in page.blocks]
    assert {"file", "bash", "text"} <= set(kinds)
    assert page.unused == []
    for number, kind in enumerate(kinds):
        assert kind != "text" or kinds[number - 1] in ("bash", "python"), "text follows its block"


# ------------------------------------------------------------------------ the rules of the pages


def test_shown_lines():
    printed = "a 12.5 b\nerror: x is 3\n  deep   lines\n"
    assert missing_line("a 7 b\n", printed) is None
    assert missing_line("a ...\nerror: x is 4\n...\ndeep lines\n", printed) is None
    assert missing_line("a c b\n", printed) == "a c b"
    assert missing_line("error: x is 3\na 12.5 b\n", printed) == "a 12.5 b"  # in order
    assert missing_line("a 12.5\n", printed) == "a 12.5"  # whole lines


def test_numbers_are_made_smaller():
    page = read_page(
        "<!-- test: epochs=24 -> epochs=1 -->\n<!-- test: x=2 -> x=1 -->\n"
        "```python\n# a.py\nepochs=24\n```\n"
        "<!-- test: not run, because it is long -->\n```bash\nsleep 9\n```\n"
        "```bash\nls\n```\n"
    )
    assert page.blocks == [Block("file", "# a.py\nepochs=1\n", "a.py"), Block("bash", "ls\n")]
    assert page.unused == ["x=2 -> x=1"]
    for text in ("epochs=2 -> iters=2", "skipped", "lr=0.1 -> lr=none"):
        with pytest.raises(ValueError):
            read_page(f"<!-- test: {text} -->\n")
    with pytest.raises(ValueError, match="python, bash or text"):
        read_page("```sh\nls\n```\n")


def test_failures_are_noticed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(AssertionError, match="exit code 1"):
        follow(Page([Block("bash", "false\n")]), folder)
    with pytest.raises(AssertionError, match="exit code 0"):
        follow(Page([Block("bash", "echo error: no\n"), Block("text", "error: no\n")]), folder)
    with pytest.raises(AssertionError, match="is not in the output"):
        follow(Page([Block("bash", "echo one\n"), Block("text", "two\n")]), folder)
    assert run_bash("echo 1\nfalse\necho 2\n", folder) == (1, "1\n")
    (folder / "own.py").write_text("import sys\nprint(sys.argv)\nraise SystemExit(3)\n")
    assert run_bash("python own.py 'a b'\n", folder) == (3, "['own.py', 'a b']\n")
    assert re.search("usage: mmlocal train", run_bash("mmlocal train --help\n", folder)[1])

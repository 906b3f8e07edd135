"""Read the pages of ``docs/tutorials`` and run what they show.

A page is run as a reader would follow it, in one empty folder:

- a ``python`` block whose first line is a comment with a file name is written to this file;
- any other ``python`` block, and each ``bash`` block, is run;
- a ``text`` block after a block that was run shows a part of its output. Each line has to appear,
  in order. Three dots stand for anything, and a number for any number. If a line begins with
  ``error:``, or the name of an error, the block has to fail; any other block has to succeed.

Comments, which readers do not see, may say more::

    <!-- test: after own_detection_data.md -->     the page goes on in the folder of another page
    <!-- test: epoch_12.pth -> epoch_1.pth -->     smaller numbers, in all blocks of the page
    <!-- test: not run, because ... -->            the next block is only shown

So a test cuts numbers, and changes no word.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from programs import run_bash, run_python

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
PAGES = sorted(path.name for path in FOLDER.glob("*.md") if path.name != "index.md")
_PART = re.compile(
    r"^<!-- test: (?P<comment>.*?) -->\n|^```(?P<kind>[^\n]*)\n(?P<body>.*?)^```\n",
    re.DOTALL | re.MULTILINE,
)
_SHOWN = ("", "json", "{toctree}")  # blocks that nobody runs, such as trees of files
_NAMED = re.compile(r"# ([\w./-]+\.\w+)\n")
_ERROR = re.compile(r"^(error|\w+Error):", re.MULTILINE)
_NUMBER = r"-?\d[\d.,]*(?:e[+-]?\d+)?"


@dataclass
class Block:
    """A block of a page.

    Args:
        kind: ``"file"``, ``"bash"``, ``"python"`` or ``"text"``.
        body: its text, with the smaller numbers of the test.
        name: name of the file.
    """

    kind: str
    body: str
    name: str = ""


@dataclass
class Page:
    """What to do to follow a page.

    Args:
        blocks: blocks to write, run and compare, in order.
        after: page whose folder this page goes on in; empty for a page on its own.
        not_run: reason for each block that is only shown.
        unused: substitutions that change nothing.
    """

    blocks: list[Block] = field(default_factory=list)
    after: str = ""
    not_run: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def read_page(text: str) -> Page:
    """Read the blocks of a page and the comments for the test.

    Args:
        text: the page, in Markdown.

    Raises:
        ValueError: a comment changes more than numbers, or is none of the three kinds, or a block
            has another language.
    """
    page, smaller, skipped = Page(), {}, False
    for part in _PART.finditer(text):
        comment = part["comment"]
        if comment is None:
            body = part["body"]
            for old, new in smaller.items():
                if old in body:
                    page.unused = [text for text in page.unused if not text.startswith(f"{old} ")]
                body = body.replace(old, new)
            if not skipped and part["kind"] not in _SHOWN:
                page.blocks.append(_block(part["kind"], body))
            skipped = False
        elif comment.startswith("after "):
            page.after = comment.removeprefix("after ")
        elif comment.startswith("not run, because "):
            page.not_run.append(comment)
            skipped = True
        elif " -> " in comment:
            old, new = comment.split(" -> ")
            if re.sub(r"\d+", "", old) != re.sub(r"\d+", "", new):
                raise ValueError(f"a test may change numbers only, not {comment!r}")
            smaller[old] = new
            page.unused.append(f"{old} -> {new}")
        else:
            raise ValueError(f"unknown comment {comment!r}")
    return page


def _block(kind: str, body: str) -> Block:
    if kind == "python" and (name := _NAMED.match(body)):
        return Block("file", body, name[1])
    if kind not in ("python", "bash", "text"):
        raise ValueError(f"a block must be python, bash or text, got {kind!r}: {body[:60]!r}")
    return Block(kind, body)


def follow(page: Page, folder: Path) -> list[str]:
    """Write, run and compare the blocks of a page.

    Args:
        page: result of :func:`read_page`.
        folder: working directory.

    Returns:
        What each run block printed.

    Raises:
        AssertionError: a block failed, did not fail, or printed something else.
    """
    printed: list[str] = []
    for number, block in enumerate(page.blocks):
        if block.kind == "file":
            (folder / block.name).write_text(block.body)
        elif block.kind == "text":
            if missing := missing_line(block.body, printed[-1]):
                raise AssertionError(f"{missing!r} is not in the output:\n{printed[-1]}")
        else:
            run = run_python if block.kind == "python" else run_bash
            code, output = run(block.body, folder)
            printed.append(output)
            after = page.blocks[number + 1 :][:1]
            fails = bool(after) and after[0].kind == "text" and bool(_ERROR.search(after[0].body))
            if bool(code) != fails:
                raise AssertionError(f"exit code {code} of\n{block.body}\n{output}")
    return printed


def missing_line(shown: str, printed: str) -> str | None:
    """Find the first line of a page's ``text`` block that an output lacks.

    Args:
        shown: text of the page.
        printed: output of the block before it.

    Returns:
        The line, or ``None`` if all lines appear in order.
    """
    rest = printed.replace("\r", "\n").splitlines()
    for line in filter(None, map(str.strip, shown.splitlines())):
        if line == "...":
            continue
        pattern = _pattern(line)
        for index, candidate in enumerate(rest):
            if pattern.fullmatch(" ".join(candidate.split())):
                rest = rest[index + 1 :]
                break
        else:
            return line
    return None


def _pattern(line: str) -> re.Pattern:
    """What a shown line stands for: white space counts once, numbers and dots are open."""
    parts = re.split(rf"(\.\.\.|(?<![\w.]){_NUMBER})", " ".join(line.split()))
    texts = [
        ".*" if part == "..." else _NUMBER if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    ]
    return re.compile("".join(texts))

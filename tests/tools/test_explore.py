"""tools/explore.py: its mistakes, and its page in a real browser."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from mmlocal import config_path
from mmlocal.cli.explore import explore
from mmlocal.errors import UsageError

from .conftest import TOOLS, environment, load_tool

CONFIG = "elsa_swin_nano_shapes"

# ------------------------------------------------------------------------------------- mistakes


def test_arguments():
    args = load_tool("explore").parse_args(["c", "--port", "0", "w"])
    assert (args.config, args.checkpoint, args.host, args.port) == ("c", "w", "127.0.0.1", 0)
    assert load_tool("explore").parse_args(["c"]).checkpoint is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: config"),
        (["c", "--port", "80000"], "expected a number from 0 to 65535, got '80000'"),
        (["c", "--max-side", "0"], "expected a number of pixels, got '0'"),
    ],
)
def test_bad_arguments(argv, message, capsys):
    with pytest.raises(SystemExit):
        load_tool("explore").parse_args(argv)
    assert message in capsys.readouterr().err


def test_busy_port(tmp_path):
    pytest.importorskip("gradio")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = f"port: {port} of 127.0.0.1 cannot be used: .*; name another one, or 0 for any"
        with pytest.raises(UsageError, match=message):
            explore(CONFIG, folder=tmp_path, port=port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_foreign_host(host, tmp_path):
    pytest.importorskip("gradio")
    with pytest.raises(UsageError, match=f"host: '{host}' is not an address of this machine"):
        explore(CONFIG, folder=tmp_path, host=host)


def test_without_gradio(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "mmlocal.cli.explore_page", raising=False)
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (needed,) = re.findall(r'^explore = \["(.*)"\]$', pyproject, re.M)
    with pytest.raises(UsageError, match=rf"needs Gradio \(.*\): pip install '{needed}'$"):
        explore(CONFIG, folder=tmp_path, port=0)


WITHOUT_ATTENTION = """
_base_ = "{base}"
backbone = dict(_delete_=True, type="ResNet_CIFAR", depth=18, base_channels=8, stem_channels=8)
model = dict(backbone=backbone, head=dict(in_channels=64))
"""


def test_models_that_cannot_be_shown(tmp_path):
    """A failed call leaves the process as it was."""
    pytest.importorskip("gradio")
    before = signal.getsignal(signal.SIGTERM), os.environ.get("GRADIO_TEMP_DIR")
    config = tmp_path / "config.py"
    config.write_text(WITHOUT_ATTENTION.format(base=config_path(CONFIG)))
    with pytest.raises(UsageError, match="has no layer whose attention can be drawn"):
        explore(str(config), folder=tmp_path, port=0)
    config.write_text(config.read_text() + "test_dataloader = None\n")
    with pytest.raises(UsageError, match="has no test_dataloader, whose pipeline prepares"):
        explore(str(config), folder=tmp_path, port=0)
    assert (signal.getsignal(signal.SIGTERM), os.environ.get("GRADIO_TEMP_DIR")) == before


# ------------------------------------------------------------------------------------ the server


class Served:
    """A running ``tools/explore.py``.

    Args:
        process: the process.
        url: address of its page.
        temporary: the folder in which it makes its temporary folder.
    """

    def __init__(self, process: subprocess.Popen, url: str, temporary: Path) -> None:
        self.process = process
        self.url = url
        self.temporary = temporary

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal, and return the exit code and the rest of the output."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextlib.contextmanager
def serving(*arguments: str, temporary: Path) -> Iterator[Served]:
    command = [sys.executable, str(TOOLS / "explore.py"), *arguments, "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=temporary,
        env=environment(TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killer = threading.Timer(300, process.kill)  # a server that never answers
    killer.start()
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"open (http://\S+) in a browser", line):
                break
        else:
            pytest.fail(f"the server ended: {process.stderr.read()}")
        served = Served(process, found[1], temporary)
        yield served
    finally:
        killer.cancel()
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    pytest.importorskip("gradio")
    with serving(CONFIG, temporary=tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        reason = "the page needs playwright and chromium to be tested"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


class Visitor:
    """A window of a browser, and the hosts that it asked."""

    def __init__(self, browser, url: str, width: int = 1280, height: int = 900) -> None:
        self.context = browser.new_context(viewport=dict(width=width, height=height))
        self.asked: set[str] = set()
        self.errors: list[str] = []
        self.context.on("request", lambda request: self.asked.add(request.url))
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", self._note)
        self.page.goto(url)
        self.wait_for_picture("pixel", "")

    def _note(self, message) -> None:
        if "Content Security Policy" in message.text or "net::" in message.text:
            self.errors.append(message.text)

    def source(self, name: str) -> str:
        image = self.page.locator(f"#{name} img")
        return image.get_attribute("src") if image.count() else ""

    def wait_for_picture(self, name: str, old: str) -> str:
        """Wait until a picture is another one, and has arrived."""
        self.page.wait_for_function(
            """([name, old]) => {
                const image = document.querySelector(`#${name} img`);
                return image && image.getAttribute('src') !== old && image.naturalWidth > 0;
            }""",
            arg=[name, old],
        )
        return self.source(name)

    def upload(self, path: Path) -> None:
        self.page.locator("#file input[type=file]").set_input_files(str(path))

    def choose(self, control: str, option: str) -> None:
        self.page.locator(f"#{control} input").click()
        self.page.get_by_role("option", name=option).first.click()

    def foreign(self) -> set[str]:
        """Requests to other hosts."""
        hosts = {urlsplit(url).hostname for url in self.asked if url.startswith(("http", "ws"))}
        return hosts - {"127.0.0.1"}


@pytest.fixture
def photograph(tmp_path) -> Path:
    path = tmp_path / "holiday.jpg"
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    cv2.imwrite(str(path), cv2.GaussianBlur(image, (0, 0), 3))
    return path


def test_page(served, browser, photograph, tmp_path):
    """Load, upload, click, choose, make mistakes, save; two visitors; a phone."""
    visitor = Visitor(browser, served.url)
    page = visitor.page
    assert page.get_by_text("The weights are random").is_visible()
    assert page.locator("#received img").count() == 1

    first = visitor.source("pixel")
    visitor.upload(photograph)
    uploaded = visitor.wait_for_picture("pixel", first)
    page.get_by_text("holiday.jpg has 96x64 pixels.").wait_for()

    box = page.locator("#input img").bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
    clicked = visitor.wait_for_picture("pixel", uploaded)

    visitor.choose("head", "head 1")
    head = visitor.wait_for_picture("pixel", clicked)
    page.locator("#ghost").wait_for()
    visitor.choose("layer", "stages.3")
    window = visitor.wait_for_picture("pixel", head)
    page.locator("#ghost").wait_for(state="hidden")

    for name, content, message in (
        ("letter.jpg", b"Dear Sir or Madam", "'letter.jpg' is not a picture in a known format"),
        ("half.jpg", photograph.read_bytes()[:900], "'half.jpg' is damaged"),
        ("nothing.jpg", b"", "'nothing.jpg' is empty"),
    ):
        bad = tmp_path / name
        bad.write_bytes(content)
        visitor.upload(bad)
        page.locator("#message").get_by_text(message).wait_for()
        assert visitor.source("pixel") == window

    # Another visitor sees the example, and the first one keeps the photograph.
    other = Visitor(browser, served.url, 390, 844)
    other.page.get_by_text("one shape has 64x64 pixels.").wait_for()
    assert other.page.evaluate("document.documentElement.scrollWidth") <= 390
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
    visitor.wait_for_picture("pixel", window)
    page.locator("#message").wait_for(state="hidden")
    assert page.get_by_text("holiday.jpg has 96x64 pixels.").is_visible()

    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "holiday.jpg_backbone.stages.3.blocks.0.attn.zip"
    with zipfile.ZipFile(download.value.path()) as saved:
        assert saved.namelist() == [
            "input.png",
            "prediction.png",
            "attention_pixel.png",
            "attention_close_up.png",
            "attention_received.png",
        ]
    for one in (visitor, other):
        assert one.foreign() == set()
        assert len(one.asked) > 10
        assert one.errors == []
        one.context.close()


def test_files_of_the_machine_stay_closed(served, photograph):
    """A request that names a file of the server, which no visitor uploaded, gets no picture."""
    import httpx

    config = httpx.get(f"{served.url}/config").json()
    events = config["dependencies"]
    upload = next(one for one in events if any(name == "upload" for _, name in one["targets"]))
    file = {"path": str(photograph), "meta": {"_type": "gradio.FileData"}}
    inputs = [file, None, "backbone.stages.0.blocks.0.attn", -1, -1, False, None]
    body = dict(data=inputs, fn_index=upload["id"], session_hash="stranger")
    httpx.post(f"{served.url}/gradio_api/queue/join", json=body)
    answer = httpx.get(f"{served.url}/gradio_api/queue/data?session_hash=stranger", timeout=20)
    assert "it was not uploaded by a user" in answer.text
    assert '"success":false' in answer.text


def test_end(served):
    """Ctrl-C ends the server quietly, and the pictures of visitors are gone."""
    (folder,) = served.temporary.glob("mmlocal-explore-*")
    code, out, err = served.end()
    refused = re.compile(r"Traceback.*?it was not uploaded by a user\.\n", re.DOTALL)
    assert (code, out, refused.sub("", err)) == (0, "", "")
    assert not folder.exists()

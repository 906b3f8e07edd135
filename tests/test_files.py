"""Files and folders that are there as a whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmlocal.files import whole_folder, write_whole

REPO = Path(__file__).resolve().parents[1]


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@pytest.fixture
def failing_rename(monkeypatch):
    """Renames, of files or of folders, fail once a test has called this."""

    def fail(*names: str):
        real = Path.rename

        def rename(self, target):
            if self.name in names:
                raise OSError("rename failed")
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)

    return fail


@pytest.mark.parametrize("content", ["naïve", "naïve".encode()], ids=["text", "bytes"])
def test_file_is_written_and_replaced(tmp_path, content):
    write_whole(tmp_path / "a.txt", "old")
    write_whole(tmp_path / "a.txt", content)
    assert (tmp_path / "a.txt").read_bytes() == "naïve".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_file_stays_if_writing_fails(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", "old")

    def full_disk(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.txt", "new")
    assert contents(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_appears_at_the_end(tmp_path, overwrite):
    out = tmp_path / "a" / "out"
    with whole_folder(out, overwrite) as new:
        (new / "file").write_text("new")
        assert not out.exists()
    assert contents(tmp_path) == {"a/out/file": "new"}
    assert os.listdir(out.parent) == ["out"]
    (tmp_path / "plain").mkdir()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_empty_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as new:
        (new / "file").write_text("new")
    assert contents(tmp_path) == {"out/file": "new"}


def test_folder_is_replaced_only_with_overwrite(tmp_path):
    out = tmp_path / "out"
    for text, overwrite in (("first", False), ("second", True)):
        with whole_folder(out, overwrite) as new:
            (new / text).write_text(text)
    assert contents(tmp_path) == {"out/second": "second"}
    with pytest.raises(OSError, match="not empty"), whole_folder(out) as new:
        (new / "third").write_text("third")
    assert contents(tmp_path) == {"out/second": "second"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_error_in_the_block_changes_nothing(tmp_path, error):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")

    def fill():
        with whole_folder(tmp_path / "out", overwrite=True) as new:
            (new / "file").write_text("new")
            raise error

    with pytest.raises(error):
        fill()
    assert contents(tmp_path) == {"out/file": "old"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "new"])
def test_failed_rename_puts_the_old_folder_back(tmp_path, failing_rename, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    failing_rename(name)
    with (
        pytest.raises(OSError, match="rename failed"),
        whole_folder(tmp_path / "out", overwrite=True) as new,
    ):
        (new / "file").write_text("new")
    assert contents(tmp_path) == {"out/file": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_place_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), whole_folder(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_process_leaves_no_half_folder(tmp_path, number):
    code = (
        "import signal, sys, time; from pathlib import Path\n"
        "from mmlocal.files import whole_folder\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with whole_folder(Path('out')) as new:\n"
        "    (new / 'file').write_text('half'); print('begun', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert os.listdir(tmp_path) == []
    with whole_folder(tmp_path / "out") as new:
        (new / "file").write_text("whole")
    assert contents(tmp_path / "out") == {"file": "whole"}

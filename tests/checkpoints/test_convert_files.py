"""Reading files that may be hostile or damaged; writing files whole or not at all."""

import argparse
import hashlib
import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import mmengine.logging.history_buffer
import numpy as np
import pytest
import torch
from convert_data import golden, timm_checkpoint
from mmengine.logging import MessageHub

from mmlocal.checkpoints import convert_file, load_file, save_file
from mmlocal.registry import MODELS


class Run:
    """An object that calls a function when unpickled."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def with_pickle(path: Path, code: bytes) -> Path:
    """Write a file of PyTorch whose pickle is ``code``."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, code if name.endswith("data.pkl") else source.read(name))
    return path


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, f"{os.system.__module__}.system"), (eval, "eval"), (open, "io.open")],
)
def test_code_is_refused(function, name, old_format, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argument = {os.system: "touch ran", eval: "open('ran', 'w')", open: "ran"}[function]
    checkpoint = dict(state_dict={}, hook=Run(function, argument))
    path = tmp_path / "evil.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ValueError, match=f"evil.pth cannot be read safely: .* {name}, which is"):
        load_file(path)
    assert not Path("ran").exists()


def test_code_in_a_bare_pickle_is_refused(tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Run(os.system, "touch ran")))
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_file(path)
    assert recwarn.list == []
    assert not Path("ran").exists()


def test_attributes_are_out_of_reach(tmp_path):
    """With a working ``getattr``, which MMEngine allows, a file could rewrite its modules."""
    code = b"\x80\x02" + b"cbuiltins\ngetattr\n" * 2
    code += b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
    code += text("__init__") + b"\x86R" + text("__globals__") + b"\x86R"
    code += text("planted") + text("by the file") + b"s."
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_file(with_pickle(tmp_path / "evil.pth", code))
    assert not hasattr(mmengine.logging.history_buffer, "planted")


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"cannot be read safely: .*TorchScript"):
        load_file(tmp_path / "model.pt")


def test_what_trainers_write_beside_the_weights(tmp_path):
    """The objects are timm's and MMEngine's, in the pickle protocol of PyTorch."""
    hub = MessageHub.get_instance("checkpoint test")
    hub.update_scalar("train/loss", 0.5)
    weights = torch.randn(3)
    torch.save(
        dict(
            state_dict=dict(weight=weights),
            args=argparse.Namespace(lr=0.1, mean=None),
            metric=np.float64(82.7),
            palette=np.zeros((2, 3), np.uint8),
            message_hub=hub.state_dict(),
        ),
        tmp_path / "a.pth",
    )
    content = load_file(tmp_path / "a.pth")
    assert torch.equal(content["state_dict"]["weight"], weights)
    assert content["args"].lr == 0.1
    assert "message_hub" in content


def test_unsafe_loading_by_the_environment_does_not_apply(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    torch.save(Run(os.system, "touch ran"), tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_file(tmp_path / "evil.pth")
    assert not Path("ran").exists()


@pytest.mark.parametrize("old_format", [False, True])
def test_damaged_files(old_format, tmp_path):
    """Any cut or changed byte gives a dict or a ``ValueError`` of one line, and nothing else."""
    buffer = io.BytesIO()
    content = dict(state_dict=dict(a=torch.randn(20, 3), b=torch.ones(2)), epoch=3, name="x")
    torch.save(content, buffer, _use_new_zipfile_serialization=not old_format)
    whole = buffer.getvalue()
    choice = random.Random(0)
    cuts = [whole[: choice.randrange(len(whole))] for _ in range(40)]
    changed = []
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(choice.choice((1, 1, 4))):
            damaged[choice.randrange(len(damaged))] = choice.randrange(256)
        changed.append(bytes(damaged))
    path = tmp_path / "damaged.pth"
    messages = []
    for damaged in [b"", b"\x80", b"no checkpoint", *cuts, *changed]:
        path.write_bytes(damaged)
        try:
            assert isinstance(load_file(path), dict)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) >= 3 + len(cuts)
    assert all(message.startswith(f"checkpoint {path} ") for message in messages)
    assert "\n" not in "".join(messages)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pth does not exist"):
        load_file(tmp_path / "no.pth")
    with pytest.raises(FileNotFoundError, match=f"folder {tmp_path} holds no .pth, "):
        load_file(tmp_path)
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold a dict, got list"):
        load_file(tmp_path / "list.pth")


CHECKPOINT = dict(meta=dict(a=(1, 2.5, None, True)), state_dict=dict(w=torch.arange(5.0)))


def test_saved_name_holds_the_hash(tmp_path):
    path = save_file(CHECKPOINT, tmp_path / "new" / "folder", "name")
    assert path.parent == tmp_path / "new" / "folder"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"name-{digest[:8]}.pth"
    content = torch.load(path, weights_only=True)
    assert content["meta"] == CHECKPOINT["meta"]
    assert torch.equal(content["state_dict"]["w"], CHECKPOINT["state_dict"]["w"])


def test_saving_twice_gives_one_file(tmp_path):
    first = save_file(CHECKPOINT, tmp_path, "name")
    before = first.read_bytes()
    assert save_file(CHECKPOINT, tmp_path, "name") == first
    assert first.read_bytes() == before
    other = save_file(CHECKPOINT | dict(meta={}), tmp_path, "name")
    assert sorted(tmp_path.iterdir()) == sorted([first, other])


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def write_a_part(path: Path, content: bytes) -> None:
        with open(path, "wb") as file:
            file.write(bytes(content)[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_a_part)
    with pytest.raises(OSError, match="No space left"):
        save_file(CHECKPOINT, tmp_path, "name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "out", "name"),
    [
        ("model_best.pth.tar", "", "model_best"),
        ("a.b.pth", "", "a.b"),
        ("last.tar", "", "last"),
        ("w.pt", "new/folder", "w"),
        ("w", "v1.0", "w"),  # a folder that exists
        ("w.pth", "elsa_swin_t.pth", "elsa_swin_t"),
        ("w.pth", "new/v1.0.pth", "v1.0"),
        ("w.pth", "new/v1.0.safetensors", "v1.0"),
    ],
)
def test_name_of_the_output(source, out, name, tmp_path):
    (tmp_path / "v1.0").mkdir()
    official, _, _ = golden("cls_01_img56_shifted")
    torch.save(timm_checkpoint(official), tmp_path / source)
    _, path = convert_file(tmp_path / source, tmp_path / out, MODELS.build, "elsa")
    is_file = out.endswith((".pth", ".safetensors"))
    folder = (tmp_path / out).parent if is_file else tmp_path / out
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    suffix = Path(out).suffix if is_file else ".pth"
    assert path == folder / f"{name}-{digest[:8]}{suffix}"
    again = convert_file(tmp_path / source, tmp_path / out, MODELS.build, "elsa")
    assert again[1] == path
    assert [file for file in folder.iterdir() if digest[:8] in file.name] == [path]


def test_output_of_another_suffix(tmp_path):
    with pytest.raises(
        ValueError, match=r"must be a folder or end in \.pth or \.safetensors, got .*\.tar"
    ):
        convert_file(tmp_path / "in.pth", tmp_path / "out.pth.tar", MODELS.build, "elsa")


def test_dry_run_writes_nothing(tmp_path):
    official, _, _ = golden("cls_01_img56_shifted")
    torch.save(official, tmp_path / "a.pth")
    conversion, path = convert_file(
        tmp_path / "a.pth", tmp_path / "b", MODELS.build, "elsa", dry_run=True
    )
    assert path is None
    assert len(conversion.report.loaded) == 53
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]

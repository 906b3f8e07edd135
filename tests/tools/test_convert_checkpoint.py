"""The command line of the converter: reports, exit codes, files."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlocal.checkpoints import SYSTEMS
from mmlocal.checkpoints.system import System
from mmlocal.cli.tool import run_tool
from mmlocal.registry import MODELS

from .conftest import TOOLS, load_tool, start

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "elsa"
QNA = DATA / "qna_ckpt"


@pytest.fixture
def official(tmp_path) -> Path:
    """A checkpoint of timm's trainer, with averaged weights that differ from the others."""
    with np.load(GOLDEN / "cls_02_img32_ape.npz") as arrays:
        weights = {
            key.removeprefix("param."): torch.from_numpy(value)
            for key, value in arrays.items()
            if key.startswith("param.")
        }
    averaged = {key: value / 2 for key, value in weights.items()}
    checkpoint = dict(state_dict=weights, state_dict_ema=averaged, epoch=3)
    torch.save(checkpoint, tmp_path / "model_best.pth.tar")
    return tmp_path / "model_best.pth.tar"


@pytest.fixture
def convert(monkeypatch, capsys, tmp_path):
    """Run the tool in this process, and return its exit code, stdout and stderr."""
    tool = load_tool("convert_checkpoint")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["convert_checkpoint.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            run_tool(tool.main)
        except SystemExit as stop:
            return (stop.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return run


def fails(result: tuple[int, str, str]) -> str:
    """The single line that reports a mistake."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_as_users_start_it(official, tmp_path):
    result = start(
        *(TOOLS / "convert_checkpoint.py", "--from", "elsa", official, "out"), cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "out").iterdir()
    assert f"wrote out/{path.name}" in result.stdout
    content = torch.load(path, weights_only=True)
    assert content["meta"]["source"]["file"] == "model_best.pth.tar"
    assert "backbone.stages.0.blocks.0.attn.qkv.weight" in content["state_dict"]


def test_report(convert, official):
    code, out, _ = convert("--from", "elsa", official, "out", "--dry-run")
    assert code == 0
    assert out.startswith("mmlocal.ELSASwin(arch={'embed_dims': 8, ")
    assert "backbone: 67 loaded; 0 resized; 0 mismatched; 0 missing; 0 unexpected\n" in out
    assert "heads: 2 kept (head)\n" in out
    assert "assumed, because no weight shows it: qk_scale=None, drop_rate=0.0, " in out
    assert "not carried over: state_dict_ema, epoch\n" in out
    assert out.endswith("dry run: nothing written\n")
    assert not Path("out").exists()


def test_averaged_weights(convert, official, tmp_path):
    assert convert("--from", "elsa", official, "last.pth")[0] == 0
    assert convert("--from", "elsa", official, "ema.pth", "--ema")[0] == 0
    (last,), (ema,) = tmp_path.glob("last-*.pth"), tmp_path.glob("ema-*.pth")
    last, ema = (torch.load(path, weights_only=True) for path in (last, ema))
    assert (last["meta"]["source"]["ema"], ema["meta"]["source"]["ema"]) == (False, True)
    for key, value in last["state_dict"].items():
        assert torch.equal(ema["state_dict"][key], value / 2)


def test_ghost_head_of_the_other_kind(convert, official):
    assert "gamma=1.0" in convert("--from", "elsa", official, "out", "--dry-run")[1]
    out = convert("--from", "elsa", official, "out", "--dry-run", "--lam", "2")[1]
    assert "lam=2.0, gamma=0.0" in out
    message = fails(convert("--from", "elsa", official, "out", "--lam", "2", "--gamma", "1"))
    assert "does not fit lam=2.0 and gamma=1.0" in message


def test_unusable_sources(convert, official, tmp_path):
    whole = official.read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text(json.dumps({"state_dict": {}}))
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    torch.save({"state_dict": {}, "hook": _Payload()}, tmp_path / "hostile.pth")
    before = sorted(tmp_path.iterdir())
    for name, words in {
        "no.pth": "no.pth does not exist",
        ".": "holds 4 checkpoints, name one",
        "truncated.pth": "cannot be read safely",
        "text.pth": "cannot be read safely: it is damaged, or was not written by PyTorch",
        "resnet.pth": "cannot be converted: it is not an official ELSA-Swin: "
        "there is no patch_embed.proj",
        "hostile.pth": f"it refers to {os.system.__module__}.system",
    }.items():
        assert words in fails(convert("--from", "elsa", name, "out")), name
    assert sorted(tmp_path.iterdir()) == before


class _Payload:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def test_unusable_outputs(convert, official, tmp_path):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    assert "'file" in fails(convert("--from", "elsa", official, "file"))
    assert "'file" in fails(convert("--from", "elsa", official, "file/out"))
    assert "'file" in fails(convert("--from", "elsa", official, "file/out.pth"))
    assert "end in .pth or .safetensors, got out.tar" in fails(
        convert("--from", "elsa", official, "out.tar")
    )
    assert sorted(tmp_path.iterdir()) == before


def test_system_is_required(convert, official):
    for arguments in ((official, "out"), ("--from", "resnet", official, "out")):
        code, _, err = convert(*arguments)
        assert code == 2
        assert "--from" in err


def test_code_base_of_somebody_else(convert, official, monkeypatch):
    """Its options become flags as soon as it is registered."""
    given = {}

    def rename(content, **options):
        given.update(options)
        raise ValueError("nothing to convert")

    ema = dict(action="store_true", help="take the averaged weights")
    options = {"ema": ema, "top_k": dict(type=int, help="how many")}
    monkeypatch.setitem(SYSTEMS, "other", System("other", "Other", rename, options))
    shown = convert("--help")[1]
    assert "elsa, volo, other: take the averaged weights" in shown
    assert "other: how many" in shown
    message = fails(convert("--from", "other", official, "out", "--ema", "--top-k", "3"))
    assert "nothing to convert" in message
    assert given == {"ema": True, "top_k": 3}
    message = fails(convert("--from", "elsa", official, "out", "--top-k", "3"))
    assert "ELSA-Swin have the options ema, lam, gamma, got top_k" in message


def test_qna(tmp_path):
    """A folder that Flax wrote gives the official logits."""
    pytest.importorskip("msgpack", reason="needs msgpack")
    result = start(TOOLS / "convert_checkpoint.py", "--from", "qna", QNA, "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "out").iterdir()
    assert result.stdout.startswith("mmlocal.QnAViT(arch={'embed_dims': 8, ")
    assert (
        "backbone: 112 loaded; 0 resized; 0 mismatched; 0 missing; 0 unexpected\n" in result.stdout
    )
    assert "not carried over: step, opt_state, dynamic_scale\n" in result.stdout
    assert f"wrote out/{path.name}" in result.stdout

    content = torch.load(path, weights_only=True)
    weights = content["state_dict"]
    backbone = MODELS.build(content["meta"]["backbone_cfg"]).eval()
    backbone.load_state_dict(
        {k[len("backbone.") :]: v for k, v in weights.items() if k.startswith("backbone.")}
    )
    with np.load(QNA / "expected.npz") as file:
        images, expected = torch.from_numpy(file["input"]), torch.from_numpy(file["logits"])
    with torch.no_grad():
        (features,) = backbone(images.permute(0, 3, 1, 2))
    logits = features.mean(dim=(2, 3)) @ weights["head.fc.weight"].t() + weights["head.fc.bias"]
    assert ((logits - expected).abs().max() / expected.abs().max()).item() <= 1e-5


def test_qna_at_another_size(convert, tmp_path):
    pytest.importorskip("msgpack", reason="needs msgpack")
    sizes = ("--kernel-size", "5", "--window-sizes", "7", "7", "4", "2")
    code, out, _ = convert("--from", "qna", QNA / "checkpoint_375300", "new.pth", *sizes)
    assert code == 0
    assert "'kernel_size': 5}, in_channels=3, window_sizes=(7, 7, 4, 2)" in out
    resized = "backbone: 98 loaded; 14 resized (stages.0.blocks.0.attn.rel_pos_table: (9, 2) for"
    assert resized in out
    (path,) = tmp_path.glob("new-*.pth")
    table = "backbone.stages.3.blocks.0.attn.w_msa.relative_position_bias_table"
    assert torch.load(path, weights_only=True)["state_dict"][table].shape == (9, 4)


def test_qna_mistakes(convert, official, tmp_path):
    pytest.importorskip("msgpack", reason="needs msgpack")
    whole = (QNA / "checkpoint_375300").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-1])
    (tmp_path / "hole").write_bytes(whole.replace(b"Dense_0", b"Dense_7"))
    (tmp_path / "shape").write_bytes(whole.replace(b"\x93\x92\x40\x0a", b"\x93\x92\x40\x0b", 1))
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    for arguments, words in (
        (("no",), "checkpoint no does not exist"),
        (("empty",), "folder empty holds no file checkpoint_<step>"),
        (("cut",), "checkpoint cut cannot be read: it is damaged"),
        (("hole",), "checkpoint hole cannot be converted: it is not an official QnA-ViT"),
        (("shape",), "damaged: an array of shape (64, 11) and dtype float32 needs 2816 bytes"),
        ((official.name,), "cannot be read: it is damaged, or not written by Flax"),
        ((QNA, "--ema"), "QnA-ViT have the options kernel_size, window_sizes, got ema"),
        ((QNA, "--kernel-size", "2"), "kernel_size must be a positive odd number, got 2"),
        ((QNA, "--window-sizes", "7"), "window_sizes must have one entry for each of the 4"),
    ):
        source, *options = arguments
        assert words in fails(convert("--from", "qna", source, "out", *options)), arguments
    message = fails(convert("--from", "elsa", official, "out", "--kernel-size", "5"))
    assert "ELSA-Swin have the options ema, lam, gamma, got kernel_size" in message
    assert sorted(tmp_path.iterdir()) == before


def test_qna_without_msgpack(convert, monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    message = fails(convert("--from", "qna", QNA, "out"))
    assert "checkpoints of Flax need msgpack: pip install msgpack" in message

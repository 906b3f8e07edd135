"""tools/export_onnx.py writes files that compute the same as the model, and explains mistakes."""

import json
import re
from pathlib import Path

import onnx
import pytest
import torch

pytest.importorskip("onnxruntime")

import onnxruntime

from mmlocal import config_path
from mmlocal.cli import export_onnx
from mmlocal.cli.export_onnx import PARTS, export, parse_args, run
from mmlocal.cli.export_table import TABLE
from mmlocal.errors import UsageError
from mmlocal.export.onnx_file import Exported


def call(*argv) -> None:
    run(**vars(parse_args([*map(str, argv)])))


def test_classifier(tmp_path, capsys):
    """Scores that sum to 1, names of the classes, and a size that is fixed for its windows."""
    out = tmp_path / "new" / "model.onnx"
    call("elsa_swin_nano_shapes", "--out", out, "--size", 40, 48, "--rounds", 1, "--normalize",
         "--cfg-options", "model.backbone.kernel_size=3")  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    printed = capsys.readouterr().out
    assert "note: only the batch is free, and images must have 40x48: the model has" in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("| elsa_swin_nano_shapes")]
    assert re.fullmatch(
        r"\| elsa_swin_nano_shapes \| model \| 2 x 40x48 \| batch \| \d+ \| [\d,]+ \| [\d.]+ \| "
        r"\d\.\de-\d\d \| \d+ \| \d+ \|",
        row,
    )
    assert "input 3x3x40x48: largest error" in printed
    meta = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert meta["mmlocal.config"] == "elsa_swin_nano_shapes"
    assert json.loads(meta["mmlocal.normalized_in_graph"]) is True
    assert len(json.loads(meta["mmlocal.mean"])) == len(json.loads(meta["mmlocal.std"])) == 3
    assert meta["mmlocal.channels"] == "RGB"
    classes = json.loads(meta["mmlocal.classes"])
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": 255 * torch.rand(1, 3, 40, 48).numpy()})
    assert scores.shape == (1, len(classes))
    torch.testing.assert_close(torch.from_numpy(scores).sum(1), torch.ones(1))


@pytest.mark.slow
def test_all_sizes(tmp_path, capsys):
    out = tmp_path / "model.onnx"
    call("elsa_swin_nano_shapes", "--out", out, "--size", 33, 41, "--batch-size", 1, "--rounds", 0,
         "--part", "backbone", "--cfg-options", "model.backbone.fit_window=False",
         "model.backbone.kernel_size=3", "model.backbone.arch.depths=[1,1]",
         "model.backbone.arch.num_heads=[2,4]", "model.backbone.out_indices=[1]")  # fmt: skip
    printed = capsys.readouterr().out
    assert "note: only the batch" not in printed
    assert "| backbone | 1 x 33x41 | all |" in printed
    assert "input 2x3x28x44: largest error" in printed


@pytest.mark.slow
def test_detr(tmp_path, capsys):
    """It has one output for each query, so it is exported whole."""
    out = tmp_path / "model.onnx"
    call("detr_qna_shapes", "--out", out, "--size", 40, 56, "--static", "--rounds", 0,
         "--cfg-options", "model.encoder.num_layers=2", "model.encoder.qna_indices=[0]",
         "model.decoder.num_layers=1", "model.backbone.num_stages=1",
         "model.backbone.strides=[2]", "model.backbone.dilations=[1]",
         "model.backbone.out_indices=[0]", "model.neck.in_channels=[16]")  # fmt: skip
    assert "| model | 2 x 40x56 | none |" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    shapes = {x.name: x.shape for x in session.get_outputs()}
    assert shapes == dict(logits=[2, 10, 10], boxes=[2, 10, 4])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("elsa_swin_nano_maskrcnn_shapes",), "part: a whole detector cannot .* --part backbone"),
        (("elsa_swin_nano_upernet_shapes", "--part", "neck"), "has no neck"),
        (("elsa_swin_nano_shapes", "--tolerance", "0"), "tolerance: must be above 0"),
        (("elsa_swin_nano_shapes", "--rounds", "-1"), "rounds: must be at least 0"),
        (("elsa_swin_nano_shapes", "missing.pth"), "missing.pth"),
    ],
)
def test_mistakes(argv, message, tmp_path):
    out = tmp_path / "model.onnx"
    with pytest.raises(UsageError, match=message):
        call(*argv, "--out", out, "--size", 32)
    assert not list(tmp_path.iterdir())


def test_size_of_a_config_without_one(tmp_path):
    with pytest.raises(UsageError, match="size: must be given: no transform"):
        call("elsa_swin_nano_shapes", "--out", tmp_path / "model.onnx")


def test_configs_of_the_table_exist():
    assert all(config_path(config) and part in PARTS for config, part, _ in TABLE)


def test_table_goes_on_after_a_failure(monkeypatch, capsys):
    """The rows of the other configs are printed, and the error names the config."""
    found = Exported(Path("x.onnx"), ("batch",), 20, 7, 10, {(1, 3, 8, 9): 1e-6})

    def export(config, *args, **settings):
        if config == TABLE[0][0]:
            raise UsageError("too large")
        return found

    monkeypatch.setattr(export_onnx, "export", export)
    with pytest.raises(SystemExit) as ended:
        parse_args(["--table"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    rows = [line.split(" | ")[0] for line in printed.out.splitlines()]
    assert rows[2:] == [f"| {config}" for config, *_ in TABLE[1:]]
    assert printed.err == f"error: {TABLE[0][0]}: too large\n"


def test_out_must_be_a_file(tmp_path):
    with pytest.raises(UsageError, match=r"out: .* is a folder; name a file"):
        call("elsa_swin_nano_shapes", "--out", tmp_path)
    with pytest.raises(SystemExit):
        parse_args(["elsa_swin_nano_shapes"])


def test_out_must_be_writable(tmp_path):
    """Said before the model is built, so the size does not matter."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"out: .*model\.onnx' cannot be written: "):
        call("elsa_swin_nano_shapes", "--out", tmp_path / "file" / "model.onnx", "--size", 1)


def test_image_below_a_patch(tmp_path):
    with pytest.raises(UsageError, match="cannot run on an input of 2x3x3x3: x must be at least"):
        call("elsa_swin_nano_shapes", "--out", tmp_path / "model.onnx", "--size", 3)


def test_a_difference_leaves_no_file(tmp_path):
    """An old file stays as it was."""
    out = tmp_path / "model.onnx"
    out.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"differ from PyTorch by .* and the limit is 1\.0e-12"):
        export(
            "elsa_swin_nano_shapes",
            out,
            size=(32, 32),
            batch_size=1,
            static=True,
            tolerance=1e-12,
            rounds=0,
        )
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]

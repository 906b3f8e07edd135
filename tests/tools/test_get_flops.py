"""tools/get_flops.py prints the right figures, and explains mistakes."""

import re
from pathlib import Path

import pytest
from mmengine import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmlocal.cli.flops import flops, format_complexity, main, parse_args
from mmlocal.errors import UsageError
from mmlocal.libraries import LIBRARIES, Library, register_library

from .conftest import TOOLS, start, write_config


@pytest.fixture
def run(capsys):
    """Run the tool in this process, and return its output."""

    def call(*argv) -> str:
        print(format_complexity(flops(**vars(parse_args([*map(str, argv)])))))
        return capsys.readouterr().out

    return call


def test_stock_models(run, config):
    """RetinaNet, an encoder-decoder and a classifier of the libraries."""
    out = run(config, "--shape", "64", "96")
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        parameters = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
    assert "64x96" in out
    assert f"({parameters:,})" in out
    # The printed parts add up to the sum.
    total = float(re.search(r"GFLOPs +([\d.]+)", out).group(1))
    parts = [float(part) for part in re.findall(r"^ +([\d.]+)  aten\.", out, re.MULTILINE)]
    assert parts
    assert total == pytest.approx(sum(parts), abs=0.01)
    assert run(config, "--shape", "64", "96", "--device", "cpu") == out


def test_our_models_by_name(run):
    out = run("elsa_swin_t_in1k_300e", "--shape", "56")
    assert "56x56" in out
    assert "29,140,978" in out
    assert "mmlocal.elsa_attention" in out


def test_options_change_the_model(run):
    out = run("elsa_swin_t_in1k_300e", "--cfg-options", "model.head.num_classes=10")
    assert f"{29_140_978 - 990 * 769:,}" in out
    assert "224x224" in out


def test_modules(run):
    """The backbone and the head of a classifier do all of its work."""
    name = "elsa_swin_t_in1k_300e"
    out = run(name, "--shape", "56", "--modules", "backbone", "head.fc")
    total = float(re.search(r"GFLOPs +([\d.]+)", out).group(1))
    macs = re.findall(r"^ +([\d.]+)  multiply-accumulates", out, re.MULTILINE)
    flops = re.findall(r"^ +([\d.]+)  products, sums", out, re.MULTILINE)
    assert re.findall(r"^module (.*) \(calls: 1\)$", out, re.MULTILINE) == ["backbone", "head.fc"]
    assert sum(map(float, macs)) == pytest.approx(total, abs=0.01)
    for products, operations in zip(macs, flops, strict=True):
        assert float(operations) == pytest.approx(2 * float(products), rel=0.01, abs=2e-3)
    message = "the model has no module 'backbone.x.y'; its module backbone has patch_embed, "
    with pytest.raises(UsageError, match=message):
        run(name, "--modules", "backbone.x.y")
    with pytest.raises(UsageError, match="no module 'neck2'; it has "):
        run(name, "--modules", "neck2")


def test_attention_among_tasks(run):
    """3.75 T for DeMT's attention, and 0.24 T for one step of ITSA, as the paper counts."""
    pytest.importorskip("mmcv._ext", reason="mmseg needs the compiled ops of mmcv")
    pytest.importorskip("mmseg", reason="has the frame of these models")
    one_step = ("--cfg-options", "model.decode_head.interaction.num_steps=1")
    for name, module, teraflops, options in (
        ("demt_swin_t_nyud_40k", "decode_head.interaction.attention", 3.751, ()),
        ("itsa_swin_t_nyud_40k", "decode_head.interaction", 0.238, one_step),
    ):
        out = run(name, "--modules", module, *options)
        assert "425x560" in out
        (flops,) = re.findall(r"^ +([\d.]+)  products, sums", out, re.MULTILINE)
        assert float(flops) / 1e3 == pytest.approx(teraflops, abs=5e-4)


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels(run, config, library, channels):
    """The image has the channels that the backbone takes."""
    options = ["--cfg-options", f"model.backbone.in_channels={channels}"]
    rgb, other = (run(config, "--shape", "64", *more) for more in ([], options))
    first, count = (int(out.split("(")[1].split(")")[0].replace(",", "")) for out in (rgb, other))
    assert (count > first) == (channels > 3)


def test_model_that_cannot_be_built(run, config):
    with pytest.raises(UsageError, match=r"config key model\.backbone\.depht = 18"):
        run(config, "--shape", "64", "--cfg-options", "model.backbone.depht=18")


def test_sizes():
    assert parse_args(["x"]).shape is None
    assert parse_args(["x", "--shape", "64"]).shape == (64, 64)
    assert parse_args(["x", "--shape", "64", "96"]).shape == (64, 96)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shape", "0"], "expected a number of pixels, got '0'"),
        (["--shape", "1.5"], "expected a number of pixels, got '1.5'"),
        (["--shape", "1", "2", "3"], "a height and a width, got 3 numbers"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(["x", *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_too_small(run):
    with pytest.raises(UsageError, match=r"shape: x must be at least one patch .*, got 2x2"):
        run("elsa_swin_t_in1k_300e", "--shape", "2")


def test_command_names_the_flag(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["elsa_swin_t_in1k_300e", "--shape", "2"])
    assert capsys.readouterr().err.startswith("error: --shape: x must be at least one patch ")


def test_config_without_a_size(tmp_path, capsys):
    path = tmp_path / "plain.py"
    path.write_text('default_scope = "mmengine"\nmodel = dict(type="ImgDataPreprocessor")\n')
    with pytest.raises(SystemExit, match="2"):
        main([str(path)])
    message = "error: --shape: must be given: no transform of the test pipeline sets a size\n"
    assert capsys.readouterr().err == message


def test_library_from_outside(tmp_path, monkeypatch):
    """It only has to be registered and to define its shape and its inference."""

    class Toy(Library):
        name = "toy"

        def default_shape(self, cfg):
            return 6, 8

        def inference(self, model, cfg):
            return lambda image: model(image[..., ::2])

    class ToyModel(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 5, kernel_size=1, bias=False)

    monkeypatch.setitem(LIBRARIES, "toy", None)  # forgotten afterwards
    register_library(Toy)
    monkeypatch.setitem(MODELS.module_dict, "ToyModel", ToyModel)
    path = tmp_path / "toy.py"
    path.write_text('default_scope = "toy"\nmodel = dict(type="ToyModel")\n')
    found = flops(str(path))
    assert (found.shape, found.parameters) == ((6, 8), 15)
    assert found.total_macs == 15 * 6 * 4


def test_model_that_needs_values(run, data, tmp_path):
    """Deformable attention reads the sizes of the maps from tensors."""
    mmdet = pytest.importorskip("mmdet", reason="has the model of this test")
    pytest.importorskip("mmcv._ext", reason="mmdet needs the compiled ops of mmcv")
    folder = Path(mmdet.__file__).parent / ".mim/configs/deformable_detr"
    cfg = Config.fromfile(folder / "deformable-detr_r50_16xb2-50e_coco.py")
    cfg.model.backbone.depth = 18
    cfg.model.neck.in_channels = [128, 256, 512]
    cfg.model.num_queries = 5
    for part in ("encoder", "decoder"):
        cfg.model[part].num_layers = 1
    cfg.dump(tmp_path / "small.py")
    with pytest.raises(UsageError, match=r"without values.*; add --device cpu"):
        run(tmp_path / "small.py", "--shape", "64")
    assert "GFLOPs" in run(tmp_path / "small.py", "--shape", "64", "--device", "cpu")


@pytest.mark.slow
def test_as_a_command(data, tmp_path):
    """stdout holds only the figures. A mistake gives one line and exit code 2."""
    config = write_config("mmpretrain", data, tmp_path / "tiny.py")
    done = start(TOOLS / "get_flops.py", config, "--shape", "32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("image       32x32\n")
    done = start(TOOLS / "get_flops.py", "elsa_swin_x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: config 'elsa_swin_x' does not exist")

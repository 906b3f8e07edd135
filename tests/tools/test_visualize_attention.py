"""tools/visualize_attention.py draws pictures for the three libraries, and explains mistakes."""

from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmlocal.cli.attention_pictures import KINDS
from mmlocal.cli.visualize_attention import visualize_attention
from mmlocal.errors import UsageError
from mmlocal.layers import MIXERS

from .conftest import TOOLS, load_tool, start, write_config

DETECTOR = "elsa_swin_nano_maskrcnn_shapes"
SEGMENTOR = "elsa_swin_nano_upernet_shapes"
QNA = """
default_scope = "mmpretrain"
data_preprocessor = dict(mean=[120, 120, 120], std=[60, 60, 60], to_rgb=True)
model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="mmlocal.QnAViT",
        arch=dict(
            embed_dims=16,
            attn_depths=(0, 1),
            qna_depths=(1, 1),
            attn_heads=(1, 2),
            qna_heads=(2, 4),
        ),
        window_sizes=(7, 7),
        out_indices=(1,),
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=3, in_channels=32),
)
pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
test_dataloader = dict(dataset=dict(type="CustomDataset", pipeline=pipeline))
"""
OTHER_PACKAGE = """
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from mmlocal.layers import MIXERS, register_mixer


@register_mixer
class Bright(nn.Module):
    kernel_size, stride, padding, dilation = 3, 1, 2, 2

    def __init__(self, embed_dims, num_heads):
        super().__init__()
        self.num_heads, self.v_dims = num_heads, embed_dims

    def attention_maps(self, x):
        maps = F.unfold(x.mean(dim=3)[:, None], 3, dilation=2, padding=2).softmax(dim=1)
        return maps.unflatten(2, x.shape[1:3])[:, None].expand(-1, self.num_heads, -1, -1, -1)

    def forward(self, x):
        windows = F.unfold(x.permute(0, 3, 1, 2), 3, dilation=2, padding=2)
        windows = windows.view(len(x), -1, 9, *x.shape[1:3])
        return (windows * self.attention_maps(x)[:, :1]).sum(dim=2).permute(0, 2, 3, 1)


@register_mixer
class BrightGhost(Bright):
    def ghost_filters(self, attn, channels):
        return attn[:1].repeat(len(channels), 1, 1, 1) - 0.1


@MODELS.register_module(force=True)
class OtherBackbone(BaseModule):
    def __init__(self):
        super().__init__()
        self.attn = MIXERS["Bright"](3, 1)
        self.ghost = MIXERS["BrightGhost"](3, 3)

    def forward(self, x):
        return (self.ghost(self.attn(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),)
"""
QNA_LAYERS = [
    "backbone.stages.0.blocks.0.attn",
    "backbone.stages.0.downsample.attn",
    "backbone.stages.1.blocks.0.attn",  # window attention
    "backbone.stages.1.blocks.1.attn",
]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """A red image with a white disc. No stride divides its size."""
    path = tmp_path_factory.mktemp("image") / "disc.png"
    picture = np.zeros((75, 101, 3), dtype=np.uint8)
    picture[..., 2] = 255
    cv2.circle(picture, (60, 40), 20, (255, 255, 255), -1)
    cv2.imwrite(str(path), picture)
    return path


@pytest.fixture
def qna(tmp_path) -> Path:
    path = tmp_path / "qna.py"
    path.write_text(QNA)
    return path


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the tool in this process, in ``tmp_path``, and return the lines of its output."""

    def call(*argv) -> list[str]:
        monkeypatch.chdir(tmp_path)
        tool = load_tool("visualize_attention")
        tool.run(tool.parse_args([*map(str, argv)]))
        return capsys.readouterr().out.splitlines()

    return call


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: cv2.imread(str(path)) for path in folder.iterdir()}


def test_elsa_detector(run, image, tmp_path):
    name = "backbone.stages.1.blocks.0.attn"
    kinds = ("received", "ghost")
    options = ("--kinds", *kinds, "--pixel", "5,70")
    lines = run(DETECTOR, image, "--out-dir", tmp_path / "out", "--layers", name, *options)
    assert "note: no checkpoint is given; the weights are random" in lines
    drawn = pictures(tmp_path / "out")
    assert set(drawn) == {f"disc_{name}_{kind}{KINDS[kind]}" for kind in kinds}
    assert {str(tmp_path / "out" / picture) for picture in drawn} <= set(lines)
    for picture in drawn.values():
        assert picture.std() > 10
    # The picture shows the image, and its red is still red.
    blue, green, red = np.moveaxis(drawn[f"disc_{name}_received.jpg"].astype(int), 2, 0)
    assert ((red > 230) & (blue < 25) & (green < 25)).mean() > 0.03


def test_overview_is_small(run, tmp_path):
    """By default there is one picture of a photograph: readable, and small."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (600, 800, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photograph.png"), cv2.GaussianBlur(noise, (0, 0), 2))
    lines = run(DETECTOR, "photograph.png")
    (path,) = (tmp_path / "work_dirs/attention").iterdir()
    assert lines[-1] == "work_dirs/attention/photograph_overview.jpg"
    assert 20_000 < path.stat().st_size < 1_000_000
    height, width = cv2.imread(str(path)).shape[:2]
    assert 500 < height < 2000
    assert 800 < width < 2000


def test_several_images(run, qna, image, tmp_path):
    """Folders and images of one name: each image has a picture of its own."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").write_text("no image")
        for suffix in ("png", "jpg"):
            cv2.imwrite(str(tmp_path / folder / f"x.{suffix}"), cv2.imread(str(image)))
    one = ("--heads", "1", "--layers", QNA_LAYERS[0])
    run(qna, "a", "b/x.png", image, "--out-dir", "out", *one)
    names = {f"{name}_overview.jpg" for name in ("x_jpg", "x_png_2", "x_png_3", "disc_png")}
    assert set(pictures(tmp_path / "out")) == names


def test_qna_classifier(run, qna, image, tmp_path):
    """The default is all layers. The weights of the checkpoint make the pictures."""
    assert [line.split()[0] for line in run(qna, "--list-layers")] == QNA_LAYERS
    cfg = Config.fromfile(qna)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        state_dict = MODELS.build(cfg.model).state_dict()
    torch.save({"state_dict": state_dict}, tmp_path / "weights.pth")
    kinds = ("--kinds", "received", "class")
    lines = run(qna, tmp_path / "weights.pth", image, "--out-dir", "a", "--heads", "2", *kinds)
    assert not any("random" in line for line in lines)
    one = ("--heads", "2", "--layers", QNA_LAYERS[-1], *kinds)
    run(qna, tmp_path / "weights.pth", image, "--out-dir", "b", *one)
    run(qna, image, "--out-dir", "random", *one)
    a, b, random = (pictures(tmp_path / folder) for folder in ("a", "b", "random"))
    names = [f"disc_{layer}_received.jpg" for layer in QNA_LAYERS]
    assert set(a) == {"disc_class.jpg", *names}
    assert set(b) == set(random) == {"disc_class.jpg", names[-1]}
    for name, picture in b.items():
        assert picture.std() > 10
        assert np.array_equal(picture, a[name])
        assert not np.array_equal(picture, random[name])


def test_layers_of_another_package(run, qna, image, tmp_path, monkeypatch):
    """Layers from outside only need the methods; nothing in mmlocal names them."""
    (tmp_path / "other_package.py").write_text(OTHER_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "base.py").write_text(QNA)
    qna.write_text(
        "_base_ = 'base.py'\n"
        "custom_imports = dict(imports=['other_package'])\n"
        "backbone = dict(_delete_=True, type='mmengine.OtherBackbone')\n"
        "model = dict(backbone=backbone, head=dict(in_channels=3))\n"
    )
    with patch.dict(MIXERS):
        assert run(qna, "--list-layers") == [
            "backbone.attn  Bright 3x3", "backbone.ghost  BrightGhost 3x3"
        ]  # fmt: skip
        run(qna, image, "--out-dir", "out", "--kinds", "overview", "ghost")
        drawn = pictures(tmp_path / "out")
        assert set(drawn) == {"disc_overview.jpg", "disc_backbone.ghost_ghost.png"}
        for picture in drawn.values():
            assert picture.std() > 10


def test_segmentor_sees_the_whole_image(run, image, tmp_path, monkeypatch):
    """The config tests by sliding windows, but the tool does not."""
    from mmlocal.visualization import attention_figures

    seen = []
    draw = attention_figures.draw_kernels

    def spy(kernels, *args, **kwargs):
        seen.append(kernels.shape)
        return draw(kernels, *args, **kwargs)

    monkeypatch.setattr(attention_figures, "draw_kernels", spy)
    slide = ("model.test_cfg.mode=slide", "model.test_cfg.crop_size=(64,64)")
    options = (*slide, "model.test_cfg.stride=(32,32)")
    layers = ("--layers", "*.stages.2.blocks.1.*", "--heads", "3")
    kinds = ("--kinds", "ghost", "class")
    run(SEGMENTOR, image, "--out-dir", "out", *layers, *kinds, "--cfg-options", *options)
    assert len(pictures(tmp_path / "out")) == 2
    # a window for each 16 pixels of 75x101, and for the ghost head two heads with three channels
    assert seen == [(2, 4, 49, 5, 7)]


def test_arguments():
    parse = load_tool("visualize_attention").parse_args
    args = parse(["c", "w", "i"])
    assert (args.config, args.checkpoint, args.images) == ("c", "w", ["i"])
    for argv in (["c", "i"], ["c", "--heads", "2", "i"], ["--heads", "2", "c", "i"]):
        args = parse(argv)
        assert (args.config, args.checkpoint, args.images) == ("c", None, ["i"])
    args = parse(["c", "w.pth", "i.png", "j", "--kinds", "class", "tiles"])
    assert (args.checkpoint, args.images, args.kinds) == (
        "w.pth",
        ["i.png", "j"],
        ["class", "tiles"],
    )
    args = parse(["c", "i.JPG", "j", "--border", "keep"])
    assert (args.checkpoint, args.images, args.border) == (None, ["i.JPG", "j"], "keep")
    args = parse(["c", "--out-dir", "o", "w", "--device", "cpu", "i"])
    assert (args.config, args.checkpoint, args.images) == ("c", "w", ["i"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["c"], "required: image"),
        (["c", "i", "--heads", "0"], "expected a number of heads, got '0'"),
        (["c", "i", "--heads", "all"], "expected a number of heads, got 'all'"),
        (["c", "i", "--kinds", "maps"], "invalid choice: 'maps' (choose from"),
        (["c", "i", "--pixel", "1,2", "--kinds", "received"], "--pixel needs --task"),
        (["c", "w", "i", "j", "--task", "depth"], "--task draws one image at a time"),
    ],
)
def test_bad_arguments(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        load_tool("visualize_attention").parse_args(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/no.png"], r"image '.*/no.png' is not a file"),
        (["{tmp}/qna.py"], r"image '.*/qna.py' is not a picture that OpenCV can read"),
        (["{tmp}/empty", "{tmp}/cut.png"], r"folder '.*/empty' has no image \(.bmp, .jpeg"),
        (["{tmp}/cut.png", "{image}"], r"image '.*/cut.png' is not a picture that OpenCV can read"),
        (["{image}", "--out-dir", "{tmp}/qna.py"], r"out_dir: '.*/qna.py' is a file"),
        (["{image}", "--out-dir", "{tmp}/qna.py/new"], r"out_dir: '.*/qna.py' is a file"),
        (
            ["{image}", "--layers", "*.stages.0.*", "backbone.stages.0.blocks.1.attn"],
            "layers: no layer of local attention matches 'backbone.stages.0.blocks.1.attn'; "
            f"did you mean .*{QNA_LAYERS[0]}.*--list-layers prints all 4",
        ),
        (["{image}", "--kinds", "ghost"], "kinds: none of these layers has a ghost head"),
        (
            ["{image}", "--kinds", "kernels", "--pixel", "101,0"],
            "pixel: the network sees '.*disc.png' as 101x75 pixels, got 101,0",
        ),
        (["{tmp}/no.pth", "{image}"], r"checkpoint .*/no.pth does not exist"),
        (["{tmp}/qna.py", "{image}"], r"checkpoint .*/qna.py cannot be read safely"),
        (["{image}", "--device", "abacus"], "device: 'abacus' cannot be used: "),
    ],
)
def test_mistakes(run, qna, image, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:100])
    arguments = [text.format(tmp=tmp_path, image=image) for text in arguments]
    with pytest.raises(UsageError, match=message) as error:
        run(qna, *arguments)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.png", "empty", "qna.py"]


def test_no_heads(qna, image, tmp_path):
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        visualize_attention(str(qna), None, str(image), tmp_path / "out", heads=0)


def test_unknown_kind(qna, image, tmp_path):
    with pytest.raises(ValueError, match=r"kinds must be some of overview, .*, got 'all'"):
        visualize_attention(str(qna), None, str(image), tmp_path / "out", kinds=["all"])


def test_class_maps_of_a_detector(run, image):
    with pytest.raises(UsageError, match="kinds: class maps need a classifier or a segmentor"):
        run(DETECTOR, image, "--kinds", "class")


def test_checkpoint_of_another_model(run, qna, image, tmp_path):
    torch.save({"state_dict": {"head.fc.weight": torch.zeros(4, 32)}}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"w.pth' does not fit .* 1 mismatched \(head.fc.weight"):
        run(qna, tmp_path / "w.pth", image)


def test_image_that_the_model_refuses(run, qna, tmp_path):
    """A classifier that takes only one size of images."""
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((16, 16, 3), dtype=np.uint8))
    pooling = "{'type':'mmlocal.QnAPooling','in_channels':32,'num_heads':4,'map_size':7}"
    qna.write_text(QNA.replace('dict(type="GlobalAveragePooling")', pooling))
    with pytest.raises(UsageError, match=r"cannot take image '.*small.png': map_size must be"):
        run(qna, tmp_path / "small.png")


def test_one_image_that_the_model_refuses(run, qna, image, tmp_path, capsys):
    """The others get their pictures, and the tool fails at its end."""
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), dtype=np.uint8))
    with pytest.raises(UsageError, match=r"1 of 2 images have no pictures: .*dot.png': x must be"):
        run(qna, tmp_path / "dot.png", image, "--out-dir", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["disc_overview.jpg"]
    assert "warning: the model cannot take image" in capsys.readouterr().err


@pytest.mark.slow
def test_model_without_local_attention(data, image, tmp_path):
    """A mistake on the command line gives one line and exit code 2."""
    config = write_config("mmpretrain", data, tmp_path / "tiny.py")
    done = start(TOOLS / "visualize_attention.py", config, image, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: the model of config {str(config)!r} has no layer of local attention "
        "(such as ELSA, QnA, WindowAttention)"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "work_dirs").exists()

"""Multi-task configs in whole runs: the demo, mmseg's own tools, and pictures of attention."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmlocal import config_path
from mmlocal.cli import visualize_sampling as visualize_sampling_module
from mmlocal.cli.browse import browse
from mmlocal.cli.visualize_attention import list_layers
from mmlocal.cli.visualize_sampling import visualize_sampling
from mmlocal.datasets.shapes import generate_shapes
from mmlocal.errors import UsageError
from mmlocal.visualization.sampling import draw_samples

from .conftest import TOOLS, load_tool, start

mmseg = pytest.importorskip("mmseg")

DEMO = "itsa_elsa_swin_nano_scenes"
STOCK = Path(mmseg.__path__[0]) / ".mim/tools"
LAYERS = [f"decode_head.interaction.steps.{step}" for step in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with scenes in ``data/shapes``."""
    folder = tmp_path_factory.mktemp("multitask")
    generate_shapes(
        folder / "data/shapes",
        tasks=("multitask",),
        num_train=4,
        num_val=2,
        scene_size=(64, 64),
        progress=False,
    )
    return folder


@pytest.fixture(scope="module")
def image(folder) -> Path:
    return folder / "data/shapes/NYUDv2/images/val_000001.png"


@pytest.mark.slow
def test_demo(folder):
    smoke = folder / "smoke.py"
    smoke.write_text(
        f"_base_ = {config_path(DEMO)!r}\n"
        "train_cfg = dict(max_iters=2, val_interval=2)\n"
        "default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))\n"
    )
    command = ("multitask", "--config", smoke, "--work-dir", "out")
    result = start(TOOLS / "demo.py", *command, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((folder / "out/summary.json").read_text())
    assert list(summary["metrics"]) == [
        *("semseg_mIoU", "human_parts_mIoU", "sal_maxF", "depth_RMSE", "normals_mErr", "edge_odsF")
    ]
    counts = json.loads((folder / "data/shapes/shapes.json").read_text())["counts"]
    assert summary["references"] == {
        "constant_depth_RMSE": counts["val"]["scenes"]["constant_depth_rmse"]
    }
    for name in (summary["checkpoint"], summary["curves"], *summary["pictures"]):
        assert (folder / name).exists()
    # Image, truth and prediction of all tasks: seven columns and two rows, enlarged four times.
    drawn = sorted((folder / "out/pictures").rglob("*.png"))
    assert len(drawn) == 2
    assert cv2.imread(str(drawn[0])).shape == (2 * (256 + 26), 7 * (256 + 4), 3)
    assert "constant_depth_RMSE" in result.stdout
    assert "4 training and 2 test images of 64x64 pixels" in result.stdout


def shrinking_options(config: str) -> list[str]:
    """``--cfg-options`` for one step on scenes of 64x64."""
    cfg = Config.fromfile(config_path(config))
    options = [
        *("train_cfg.max_iters=1", "train_cfg.val_interval=1", "model.decode_head.channels=16"),
        *("default_hooks.checkpoint.interval=1", "default_hooks.logger.interval=1"),
        "model.data_preprocessor.size=(64,64)",
        "model.decode_head.interaction.position_channels=8",
        "model.decode_head.interaction.num_points=2",
    ]
    for phase in ("train", "val", "test"):
        loader = f"{phase}_dataloader"
        options += [
            f"{loader}.batch_size=2",
            f"{loader}.num_workers=0",
            f"{loader}.persistent_workers=False",
            f"{loader}.dataset.data_root=data/shapes/NYUDv2",
        ]
        for index, step in enumerate(cfg[loader].dataset.pipeline):
            options += [
                f"{loader}.dataset.pipeline.{index}.{key}=(64,64)"
                for key in ("size", "crop_size")
                if key in step
            ]
    return ["--cfg-options", *options]


@pytest.mark.slow
def test_stock_tools(folder):
    """mmseg's own tools run the config, without imports on the command line."""
    name = "itsa_hrnet18_nyud_40k"
    options = shrinking_options(name)
    for tool, arguments, found in (
        ("train.py", [], "loss_normals"),
        ("test.py", [folder / "stock/iter_1.pth"], "edge/odsF"),
    ):
        command = [STOCK / tool, config_path(name), *arguments, "--work-dir", "stock", *options]
        result = start(*command, cwd=folder)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        assert found in result.stdout + result.stderr
    assert (folder / "stock/iter_1.pth").is_file()


@pytest.mark.slow
def test_detection_as_one_more_task(folder):
    name = "itsa_det_elsa_swin_nano_scenes"
    options = ("--cfg-options", "train_cfg.max_iters=1", "default_hooks.checkpoint.interval=1")
    log = ""
    for tool, arguments in (("train.py", []), ("test.py", [folder / "det/iter_1.pth"])):
        command = [TOOLS / tool, name, *arguments, "--work-dir", "det", *options]
        result = start(*command, cwd=folder)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        log += result.stdout
    assert "coco/bbox_mAP" in log
    assert "edge/odsF" in log


def test_browse_draws_the_labels_of_all_tasks(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    cfg = Config.fromfile(config_path(DEMO))
    # Padding makes float images.
    pad = dict(type="mmlocal.MultiTaskPad", size=(80, 64))
    cfg.train_dataloader.dataset.pipeline.insert(2, pad)
    config = tmp_path / "padded.py"
    cfg.dump(config)
    out = tmp_path / "out"
    browse(str(config), output_dir=str(out), not_show=True, show_number=2)
    drawn = [cv2.imread(str(path)) for path in sorted(out.iterdir())]
    assert [picture.shape for picture in drawn] == [(320 + 26, 7 * (256 + 4), 3)] * 2
    image = drawn[0][22 : 22 + 320, :256]
    assert len(np.unique(image)) > 20


def test_lists_layers():
    found = list_layers(DEMO)
    assert {found[name] for name in LAYERS} == {"InterTaskAttention, 12 maps"}
    assert any(kind.startswith("ELSA ") for kind in found.values())


def test_draws_what_a_pixel_reads(image, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [DEMO, image, "--task", "depth", "--pixel", "20,63", "--out-dir", out]
    load_tool("visualize_attention").main([*map(str, argv), "--layers", "*.steps.1"])
    (path,) = out.iterdir()
    assert path.name == f"{LAYERS[1]}_depth_20_63.png"
    assert str(path) in capsys.readouterr().out
    assert cv2.imread(str(path)).std() > 10


def test_network_that_pads_its_input(image, tmp_path, monkeypatch):
    """The pixel has its place in the padded image, as the positions have theirs."""
    drawn = []

    def draw(samples, shown, tasks, task, place, *args):
        drawn.append((shown.shape, place))
        return draw_samples(samples, shown, tasks, task, place, *args)

    monkeypatch.setattr(visualize_sampling_module, "draw_samples", draw)
    options = {"model.data_preprocessor.test_cfg": dict(size=(64, 128))}
    arguments = dict(layers=["*.steps.0"], cfg_options=options)
    visualize_sampling(DEMO, None, str(image), tmp_path, "edge", (20, 63), **arguments)
    assert drawn == [((64, 128, 3), (20.5 / 128, 63.5 / 64))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(task="flow"), r"task: the model has semseg, .*, edge, got 'flow'"),
        (dict(task="depth", pixel=(64, 3)), r"pixel: the image has 64x64 pixels, got 64,3"),
        (dict(task="depth"), r"pixel: must be given, as X,Y: there is no display"),
        (dict(task="depth", layers=["neck"]), r"no layer of attention between tasks matches"),
        (dict(task="depth", config="elsa_swin_nano_upernet_shapes"), r"no attention between tasks"),
    ],
)
def test_mistakes(image, tmp_path, monkeypatch, arguments, message):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    arguments = dict(config=DEMO, checkpoint=None, image=str(image), out_dir=tmp_path) | arguments
    with pytest.raises(UsageError, match=message):
        visualize_sampling(**arguments)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["c", "i", "--pixel", "1,2"], "--pixel needs --task"),
        (["c", "i", "--task", "depth", "--pixel", "1"], "expected X,Y in pixels, got '1'"),
    ],
)
def test_bad_arguments(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        load_tool("visualize_attention").parse_args(argv)
    assert re.search(re.escape(message), capsys.readouterr().err)

"""The logic of the page that shows attention, without the page."""

import importlib.util
import io
import threading
import time
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from mmlocal.cli.config import load_config
from mmlocal.cli.explore import build_network
from mmlocal.errors import UsageError
from mmlocal.libraries import library_of
from mmlocal.visualization import explorer as module
from mmlocal.visualization import explorer_maps
from mmlocal.visualization.explorer import (
    Choice,
    Explorer,
    Network,
    Reading,
    View,
    describe_input,
    describe_part,
)
from mmlocal.visualization.explorer_maps import (
    Grid,
    draw_sums,
    draw_weights,
    enlargement,
    mark_pixel,
)
from mmlocal.visualization.explorer_pictures import (
    MOST_PIXELS,
    Photograph,
    TemporaryFiles,
    encode_png,
    example_pictures,
    pack_pictures,
    read_photograph,
)
from mmlocal.visualization.figures import rasterize


@pytest.fixture(autouse=True)
def _quick_figures(monkeypatch):
    monkeypatch.setattr(explorer_maps, "_DPI", 50)


# ---------------------------------------------------------------------------------- photographs


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """Red on the left, blue on the right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = image[:, width // 2 :, 2] = 250
    return image


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"two colours.{suffix}"
    Image.fromarray(picture()).save(path)
    read = read_photograph(path, 1000)
    assert (read.name, read.file_size, read.image.shape) == (path.name, (40, 60), (40, 60, 3))
    assert read.image.dtype == np.uint8
    assert abs(read.image[20, 5].astype(int) - (250, 0, 0)).max() < 30


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_modes(tmp_path, mode):
    path = tmp_path / "mode.tiff"
    Image.fromarray(picture()).convert(mode).save(path)
    assert read_photograph(path, 30).image.shape == (20, 30, 3)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_sixteen_bits(tmp_path, name):
    """Grey stays grey, also in a picture that is scaled down."""
    Image.fromarray(np.full((40, 60), 128 << 8, np.uint16)).save(tmp_path / name)
    image = read_photograph(tmp_path / name, 30).image
    assert image.shape == (20, 30, 3)
    assert image.min() == image.max() == 128


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_unknown_range(tmp_path, dtype):
    Image.fromarray(np.ones((4, 6), dtype)).save(tmp_path / "x.tiff")
    with pytest.raises(UsageError, match=r"'x\.tiff' has pixels of 32 bits, .* save it with 8"):
        read_photograph(tmp_path / "x.tiff", 30)


def test_a_photograph_of_a_phone(tmp_path):
    """The file lies on its side, says so, and is larger than the limit."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    Image.fromarray(picture()).save(tmp_path / "phone.jpg", exif=exif)
    read = read_photograph(tmp_path / "phone.jpg", 30)
    assert read.file_size == (60, 40)
    assert read.image.shape == (30, 20, 3)
    assert read.image[3, 10, 0] > 200  # red is above blue now
    assert read.image[27, 10, 2] > 200


def jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def huge_png() -> bytes:
    """A file of 70 bytes that claims more pixels than the page takes."""
    side = int(MOST_PIXELS**0.5) + 1
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IEND\xaeB`\x82"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'x.jpg' is empty; choose another file"),
        (b"Dear Sir or Madam", r"'x.jpg' is not a picture in a known format \(JPEG, PNG, WEBP, "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "'x.jpg' is not a picture"),
        (jpeg()[:9000], "'x.jpg' is damaged: .*truncated"),
        (encode_png(picture(300, 300))[:700], "'x.jpg' is damaged"),
        (huge_png(), r"'x.jpg' has 8001x8001 pixels, and the most is 64 million; scale it down"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        read_photograph(path, 1000)
    assert "\n" not in str(error.value)


def test_a_bomb(tmp_path, monkeypatch):
    """Pillow itself refuses pictures that are far larger than the limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    cv2.imwrite(str(tmp_path / "x.png"), picture())
    with pytest.raises(UsageError, match="has too many pixels, and the most is 64 million"):
        read_photograph(tmp_path / "x.png", 1000)


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"'no\.png' is not a file"):
        read_photograph(tmp_path / "no.png", 1000)


def test_examples(monkeypatch):
    names = list(example_pictures("room"))
    assert names[0] == "room"
    assert {"cat", "astronaut", "one shape", "shapes"} < set(names)
    for image in example_pictures().values():
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
    assert next(iter(example_pictures())) == "cat"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(example_pictures()) == ["one shape", "shapes", "room"]


def test_files_to_save():
    packed = pack_pictures({"a.png": encode_png(picture())})
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.namelist() == ["a.png"]
        with Image.open(archive.open("a.png")) as read:
            np.testing.assert_array_equal(np.array(read), picture())


def test_temporary_files(tmp_path, monkeypatch):
    """Names may repeat. Old files go."""
    now = iter([0, 50, 101, 102])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    files = TemporaryFiles(tmp_path / "shown", 100)
    paths = [Path(files.write("a.png", bytes([number]))) for number in range(4)]
    assert {path.name for path in paths} == {"a.png"}
    assert [path.exists() for path in paths] == [False, True, True, True]
    assert paths[3].read_bytes() == b"\x03"
    assert not paths[0].parent.exists()


# ---------------------------------------------------------------------------------------- maps


def test_grid():
    """75x101 pixels make 5x7 tokens of 16 pixels at stride 16, of which the last are cut."""
    grid = Grid((5, 7), (75, 101))
    assert grid.step == (16, 16)
    assert grid.token_of((0, 0)) == (0, 0)
    assert grid.token_of((15, 16)) == (1, 0)
    assert grid.token_of((100, 74)) == (4, 6)
    values = torch.zeros(5, 7)
    values[4, 6] = 1
    spread = grid.spread(values)
    assert spread.shape == (75, 101)
    assert spread[64:, 96:].all()
    assert spread.sum() == 11 * 5
    assert grid.box_of(values) == (80, 48, 101, 75)
    values[1, 2] = -1
    assert grid.box_of(values) == (16, 0, 101, 75)
    assert grid.box_of(torch.zeros(5, 7)) is None


def test_grid_of_an_enlarging_layer():
    """A map with more tokens than pixels has tokens of one pixel."""
    grid = Grid((8, 8), (4, 4))
    assert grid.step == (1, 1)
    assert grid.spread(np.ones((8, 8))).shape == (4, 4)


def test_drawn_weights():
    image = np.full((32, 48, 3), 100, np.uint8)
    weights = np.zeros((32, 48))
    weights[8:12, 8:12] = 0.5
    figure = draw_weights(image, weights, "title", (9, 9))
    axis = figure.axes[0]
    colours = np.asarray(axis.images[1].get_array())
    assert (colours[..., 3] > 0).sum() == 16  # the rest stays clear
    (x, y), *_ = {tuple(map(float, np.ravel(line.get_data()))) for line in axis.lines}
    assert (x, y) == (9.5, 9.5)
    assert (axis.get_xlim(), axis.get_ylim()) == ((0, 48), (32, 0))
    close = draw_weights(image, weights, "title", (9, 9), box=(4, 4, 16, 20))
    assert (close.axes[0].get_xlim(), close.axes[0].get_ylim()) == ((4, 16), (20, 4))
    drawn = rasterize(figure)
    assert drawn.dtype == np.uint8
    assert drawn.shape[2] == 3
    assert drawn.std() > 10
    # Negative weights are blue, positive ones red.
    weights[20:24] = -0.5
    signed = np.asarray(
        draw_weights(image, weights, "", (0, 0), signed=True).axes[0].images[1].get_array()
    )
    assert signed[9, 9, 0] > signed[9, 9, 2]
    assert signed[21, 9, 0] < signed[21, 9, 2]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_even_maps_can_be_drawn(value):
    image = np.full((8, 8, 3), 100, np.uint8)
    even = np.full((8, 8), value)
    for figure in (draw_weights(image, even, "", (1, 1)), draw_sums(image, even, "", "")):
        assert rasterize(figure).size


def test_marked_pixel():
    image = np.zeros((6, 10, 3), np.uint8)
    assert (enlargement((6, 10)), enlargement((600, 800)), enlargement((300, 200))) == (48, 1, 2)
    marked = mark_pixel(image, (9, 5))
    assert marked.shape == (288, 480, 3)
    rows, columns, _ = np.nonzero(marked)
    assert rows.min() > 240
    assert columns.min() > 420
    assert not image.any()


# ------------------------------------------------------------------------------------ networks


def network(config: str) -> Network:
    cfg = load_config(config)
    library_of(cfg).require()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        return build_network(cfg, None, "cpu")


@pytest.fixture(scope="module")
def classifier() -> Explorer:
    """ELSA in three stages, window attention in the last one."""
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        yield Explorer(network("elsa_swin_nano_shapes"))


def shot(height: int = 64, width: int = 64) -> Photograph:
    return Photograph(
        "shot",
        np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8),
        (height, width),
    )


def spied(monkeypatch) -> dict:
    """The arguments of the last call of each drawing function."""
    calls = {}

    def spy(name):
        function = getattr(module, name)

        def call(*args, **kwargs):
            calls.setdefault(name, []).append((args, kwargs))
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in ("draw_weights", "draw_sums", "draw_samples"):
        spy(name)
    return calls


ELSA = "backbone.stages.0.blocks.0.attn"
WINDOW = "backbone.stages.3.blocks.0.attn"


def test_elsa(classifier, monkeypatch):
    assert classifier.layers[ELSA] == "ELSA"
    view, reading = classifier.open(shot(), ELSA)
    assert (reading.heads, reading.queries, reading.has_ghost) == (2, 1, True)
    assert view.prediction.shape[0] >= 384  # there is room for the text
    np.testing.assert_array_equal(view.image, view.photograph.image)
    calls = spied(monkeypatch)
    pictures = classifier.draw(view, reading, Choice((21, 34), head=1))
    assert list(pictures) == ["pixel", "close_up", "received"]
    (image, weights, title, pixel), _ = calls["draw_weights"][0]
    assert image is view.image
    assert pixel == (21, 34)
    assert title == f"{ELSA}\nattention of pixel (21, 34), head 1"
    # The window of 7x7 tokens of 4 pixels is around the token (8, 5).
    taps = reading.attention.maps[0, 0, 1, :, 8, 5].view(7, 7).numpy()
    expected = np.zeros((16, 16), np.float32)
    expected[5:12, 2:9] = taps
    np.testing.assert_allclose(weights, expected.repeat(4, 0).repeat(4, 1), rtol=1e-6)
    assert calls["draw_weights"][1][1]["box"] == (4, 16, 40, 52)
    # Around the token that each sees, the windows give the mean that is drawn.
    (_, sums, _, _), _ = calls["draw_sums"][0]
    np.testing.assert_allclose(
        sums[::4, ::4], reading.attention.received(mean=True)[0, 0, 1], rtol=1e-6
    )


def test_ghost_head(classifier, monkeypatch):
    view, reading = classifier.open(shot(), ELSA)
    calls = spied(monkeypatch)
    classifier.draw(view, reading, Choice((21, 34), head=0, ghost=True))
    classifier.draw(view, reading, Choice((21, 34), head=0))
    ghost, plain = calls["draw_weights"][0], calls["draw_weights"][2]
    assert "filter after the ghost head" in ghost[0][2]
    assert ghost[1]["signed"]
    assert not plain[1]["signed"]
    layer = classifier.network.model.get_submodule(ELSA)
    added = layer.ghost_add[:16].mean(0).detach().numpy()  # gamma is 1, and lam is 0
    difference = (ghost[0][1] - plain[0][1])[5 * 4 : 12 * 4 : 4, 2 * 4 : 9 * 4 : 4]
    np.testing.assert_allclose(difference, added, atol=1e-6)


def test_window_attention(classifier, monkeypatch):
    view, first = classifier.open(shot(), ELSA)
    reading = classifier.read(view, WINDOW)
    assert (reading.layer, first.layer) == (WINDOW, ELSA)
    assert not reading.has_ghost
    calls = spied(monkeypatch)
    classifier.draw(view, reading, Choice((0, 0)))
    weights = calls["draw_weights"][0][0][1]
    assert weights[::32, ::32].sum() == pytest.approx(1)  # a window of 2x2 tokens is the whole map
    assert "mean of 16 heads" in calls["draw_weights"][0][0][2]


def test_learned_queries(monkeypatch):
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        explorer = Explorer(network("qna_vit_nano_shapes"))
        name = next(iter(explorer.layers))
        view, reading = explorer.open(shot(), name)
        assert reading.queries == 2
        calls = spied(monkeypatch)
        for query in (None, 0, 1):
            explorer.draw(view, reading, Choice((30, 30), query=query))
    mean, first, second = (args[1] for args, _ in calls["draw_weights"][::2])
    np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)
    assert abs(first - second).max() > 0
    titles = [args[2] for args, _ in calls["draw_weights"][::2]]
    assert "mean of 2 queries" in titles[0]
    assert "query 1" in titles[2]


def test_attention_between_tasks(monkeypatch):
    with DefaultScope.overwrite_default_scope("mmseg"):
        explorer = Explorer(network("itsa_elsa_swin_nano_scenes"))
        steps = [name for name, kind in explorer.layers.items() if kind == "InterTaskAttention"]
        assert len(steps) == 2
        assert len(explorer.layers) > 2  # the backbone has local attention
        view, reading = explorer.open(shot(64, 96), steps[0])
        assert (reading.heads, reading.queries, reading.has_ghost) == (0, 0, False)
        assert set(view.backgrounds) == set(explorer.network.tasks)
        calls = spied(monkeypatch)
        pictures = explorer.draw(view, reading, Choice((10, 20), task="depth"))
        assert list(pictures) == ["pixel"]
        (_, _, tasks, task, place, title, _), _ = calls["draw_samples"][0]
        assert (task, list(tasks)) == ("depth", list(explorer.network.tasks))
        assert place == (10.5 / 96, 20.5 / 64)
        assert title == f"{steps[0]}: positions that pixel (10, 20) of depth reads"
        other = explorer.draw(view, reading, Choice((90, 20), task="depth"))
        assert not np.array_equal(pictures["pixel"], other["pixel"])
        assert isinstance(explorer.read(view, ELSA), Reading)


@pytest.mark.parametrize(
    ("config", "scope"),
    [("elsa_swin_nano_maskrcnn_shapes", "mmdet"), ("elsa_swin_nano_upernet_shapes", "mmseg")],
)
def test_other_libraries(config, scope):
    """The library's visualizer draws on the photograph. The map has the size of the input."""
    with DefaultScope.overwrite_default_scope(scope):
        explorer = Explorer(network(config))
        view, reading = explorer.open(shot(90, 130), ELSA)
        pictures = explorer.draw(view, reading, Choice((129, 89)))
    assert view.prediction.shape == (4 * 90, 4 * 130, 3)
    assert view.seen_size == (90, 130)
    assert view.image.shape[0] >= 90
    assert set(pictures) == {"pixel", "close_up", "received"}


def test_visitors_at_the_same_time(classifier):
    """Each gets the pictures that it would get alone."""
    shots = [shot(), Photograph("other", shot().image[::-1], (64, 64))]

    def visit(index: int) -> dict:
        view, reading = classifier.open(shots[index], ELSA)
        return classifier.draw(view, reading, Choice((5 + 9 * index, 7), head=index))

    alone = [visit(index) for index in (0, 1)]
    together = [None, None]

    def keep(index: int) -> None:
        together[index] = visit(index)

    threads = [threading.Thread(target=keep, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        for kind, image in one.items():
            np.testing.assert_array_equal(image, other[kind])
    assert not np.array_equal(alone[0]["pixel"], alone[1]["pixel"])


def test_no_attention():
    with pytest.raises(UsageError, match="has no layer whose attention can be drawn"):
        Explorer(Network(nn.Linear(2, 2), None, None, None, None))


def test_a_layer_that_does_not_run(classifier):
    quiet = Network(
        classifier.network.model,
        classifier.network.load,
        classifier.network.pad,
        lambda item, name, records: ((64, 64), {}, None),
        classifier.network.draw,
    )
    with pytest.raises(UsageError, match=f"{ELSA} did not run on this picture; choose another"):
        Explorer(quiet).open(shot(), ELSA)


# --------------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize(
    ("file", "start", "seen", "padded", "steps", "text"),
    [
        ((64, 64), (64, 64), (64, 64), (64, 64), [], "The network sees all of it, in this size."),
        (
            (300, 400),
            (300, 400),
            (224, 224),
            (224, 224),
            ["ResizeEdge", "CenterCrop"],
            "The network sees a picture of 224x224, scaled and cropped by ResizeEdge, CenterCrop.",
        ),
        (
            (3000, 4000),
            (600, 800),
            (800, 1067),
            (800, 1088),
            ["Resize"],
            "This page scaled it to 800x600. The network sees a picture of 1067x800, scaled by "
            "Resize. It is padded to 1088x800; the padding is black here.",
        ),
        (
            (300, 451),
            (300, 451),
            (128, 128),
            (128, 128),
            ["Resize"],
            "The network sees a picture of 128x128, scaled out of proportion by Resize.",
        ),
        ((9, 9), (9, 9), (8, 8), (8, 8), [], "The network sees a picture of 8x8, changed."),
    ],
)
def test_description_of_the_input(file, start, seen, padded, steps, text):
    photograph = Photograph("cat", np.zeros((*start, 3), np.uint8), file)
    view = View(photograph, {}, np.zeros((*padded, 3)), seen, np.zeros((1, 1, 3)), {})
    assert describe_input(view, steps) == f"cat has {file[1]}x{file[0]} pixels. {text}"


def test_description_of_the_part(classifier):
    _, reading = classifier.open(shot(), ELSA)
    assert describe_part(reading.attention, Choice((0, 0))) == "mean of 2 heads"
    assert describe_part(reading.attention, Choice((0, 0), head=1)) == "head 1"


def test_steps_of_a_config():
    """Loading and packing are not worth a word."""
    from mmlocal.cli.explore import _steps

    assert _steps(load_config("elsa_swin_t_in1k_300e")) == ["ResizeEdge", "CenterCrop"]
    assert _steps(load_config("elsa_swin_nano_shapes")) == []


def test_no_gradio_in_the_logic():
    for path in Path(module.__file__).parent.glob("explorer*.py"):
        assert "gradio" not in path.read_text()

"""Attention received, tiled kernels, ghost filters, and how they are collected from a model."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from mmlocal.checkpoints.qna import convert_qna_layer
from mmlocal.layers import (
    ELSA,
    MLP,
    SASA,
    EvenWindowAttention,
    GlobalAttention,
    HaloAttention,
    OutlookAttention,
    QnA,
    UpsampleQnA,
    WindowAttention,
)
from mmlocal.visualization.attention import (
    LayerAttention,
    collect_attention,
    enlarge,
    find_layers,
    sliding_taps,
    tile_kernels,
)
from mmlocal.visualization.attention_figures import (
    draw_kernels,
    draw_layer,
    draw_overview,
    representatives,
)
from mmlocal.visualization.figures import save_figure

DATA = Path(__file__).parents[1] / "data" / "qna"


@pytest.mark.parametrize("name", ["derived_attention_maps", "derived_attention_maps_stride2"])
def test_golden(name):
    """The collected attention, and the attention that tokens receive, equal the official code's."""
    with np.load(DATA / f"{name}.npz") as arrays:
        golden = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "config"}
        config = json.loads(str(arrays["config"]))
    layer = QnA(
        config["in_features"],
        config["heads"],
        config["kernel_size"],
        config["n_queries"],
        config["stride"],
        config["padding"],
    )
    params = {k[len("params/") :]: v for k, v in golden.items() if k.startswith("params/")}
    layer.load_state_dict(convert_qna_layer(params))
    with collect_attention({"layer": layer}) as attention:
        layer(golden["input"])
    maps = attention["layer"].maps.permute(0, 4, 5, 1, 2, 3)
    torch.testing.assert_close(maps, golden["attn"], rtol=0, atol=1e-6)
    sums = attention["layer"].received().permute(0, 3, 4, 1, 2)
    torch.testing.assert_close(sums, golden["attn_received"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "size"),
    [
        (3, 1, 1, (6, 7)),
        (3, 2, 1, (7, 6)),
        (7, 1, 3, (4, 5)),
        (4, 3, 2, (5, 11)),
        (5, 1, 0, (5, 5)),
    ],
)
def test_total_received(kernel_size, stride, padding, size):
    """QnA loses no attention: each window gives out 1 per query and head."""
    torch.manual_seed(0)
    layer = QnA(8, 2, kernel_size, 3, stride, padding).double()
    with collect_attention({"": layer}) as attention:
        out = layer(torch.randn(2, *size, 8, dtype=torch.float64))
    sums = attention[""].received()
    assert sums.shape == (2, 3, 2, *size)
    assert sums.dtype == torch.float64
    windows = torch.full((2, 3, 2), float(out.shape[1] * out.shape[2]), dtype=torch.float64)
    torch.testing.assert_close(sums.sum(dim=(3, 4)), windows, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
def test_received_with_dilation(dilation):
    """A loop over windows and taps gives the same. Taps outside the map are left out."""
    torch.manual_seed(0)
    attn = torch.rand(2, 9, 5, 4)
    expected, holders = torch.zeros(2, 5, 4), torch.zeros(5, 4)
    for y in range(5):
        for x in range(4):
            for tap in range(9):
                row, col = y + (tap // 3 - 1) * dilation, x + (tap % 3 - 1) * dilation
                if 0 <= row < 5 and 0 <= col < 4:
                    expected[:, row, col] += attn[:, tap, y, x]
                    holders[row, col] += 1
    taps = (sliding_taps(size, size, 3, 1, dilation, dilation) for size in (5, 4))
    record = LayerAttention(attn[:, None, None], (5, 4), *taps)
    torch.testing.assert_close(record.received()[:, 0, 0], expected)
    torch.testing.assert_close(record.received(mean=True)[:, 0, 0], expected / holders * 9)


def test_maps_fit_their_taps():
    taps = (sliding_taps(5, 5, 3, 1, 1), sliding_taps(5, 4, 3, 1, 1))
    with pytest.raises(ValueError, match=r"heads, 9, 5, 4\) for 5x4 windows of 3x3 taps, got"):
        LayerAttention(torch.zeros(1, 1, 1, 9, 5, 5), (5, 5), *taps)


SIZE = (6, 5)
TOKENS = SIZE[0] * SIZE[1]


def make(kind: type[nn.Module], **arguments: Any) -> nn.Module:
    """A layer of two heads with uneven attention, whose values of each head are its input."""
    torch.manual_seed(0)
    layer = kind(2 * TOKENS, 2, **arguments).double()
    for name, weight in layer.named_parameters():
        torch.nn.init.normal_(weight, std=0.5 if "table" in name else 1.5)
    inner = getattr(layer, "w_msa", layer)
    inner.proj = nn.Identity()
    values = {"qkv": slice(-2 * TOKENS, None), "value": slice(None), "v": slice(None)}
    for name, rows in values.items():
        if isinstance(projection := getattr(inner, name, None), nn.Linear | nn.Conv2d):
            eye = torch.eye(2 * TOKENS, dtype=torch.float64)
            projection.weight.data[rows] = eye.view_as(projection.weight[rows])
            if projection.bias is not None:
                projection.bias.data[rows] = 0
    return layer


LAYERS = {
    "window": (WindowAttention, dict(window_size=3)),
    "shifted window": (WindowAttention, dict(window_size=3, shift=True)),
    "padded window": (WindowAttention, dict(window_size=4)),
    "shifted padded window": (WindowAttention, dict(window_size=4, shift=True)),
    "window above the map": (WindowAttention, dict(window_size=8, shift=True)),
    "window that fits": (WindowAttention, dict(window_size=8, shift=True, fit_window=True)),
    "even window": (EvenWindowAttention, dict(window_size=4)),
    "halo": (HaloAttention, dict(block_size=4, halo_size=1)),
    "global": (GlobalAttention, {}),
    "ELSA": (ELSA, dict(kernel_size=3, dilation=2, group_width=4, gamma=0)),
    "ELSA with ghost head": (ELSA, dict(kernel_size=5, group_width=4, lam=2)),
    "QnA": (QnA, dict(attn_scale="none")),
    "QnA with stride": (QnA, dict(attn_scale="none", stride=2)),
    "UpsampleQnA": (UpsampleQnA, {}),
    "SASA": (SASA, dict(kernel_size=3)),
    "outlook": (OutlookAttention, {}),
    "outlook of each pixel": (OutlookAttention, dict(kernel_size=5, stride=1, padding=2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_of_pixel(name):
    """The weights of a position are a row of the whole attention matrix.

    The values of each head are one-hot codes of positions, so the layer's output is the matrix.
    """
    kind, arguments = LAYERS[name]
    layer = make(kind, **arguments)
    ghost = name == "ELSA with ghost head"
    if ghost:  # the same filters for all channels of a head
        for table in (layer.ghost_mul, layer.ghost_add):
            table.data = table.data[[0, TOKENS]].repeat_interleave(TOKENS, dim=0)
    x = torch.eye(TOKENS, dtype=torch.float64).repeat(1, 2).view(1, *SIZE, 2 * TOKENS)
    with torch.no_grad(), collect_attention(find_layers(layer)) as attention:
        matrix = layer(x)[0].unflatten(2, (2, *SIZE))
    record = attention[""]
    assert record.output_size == matrix.shape[:2]
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-9)
    for y in range(matrix.shape[0]):
        for x in range(matrix.shape[1]):
            for head in (0, 1):
                weights = record.of_pixel(y, x, head=head, ghost=ghost) * record.num_queries
                close(weights, matrix[y, x, head])
            weights = record.of_pixel(y, x, ghost=ghost) * record.num_queries
            close(weights, matrix[y, x].mean(0))
    if not ghost:
        sums = record.received()[0].sum(0)
        close(sums, matrix.sum((0, 1)))
        assert sums.std() > 0.1


def test_shifted_windows_by_hand():
    """Tokens attend to the tokens in the same part of the shifted window, padding among them."""
    torch.manual_seed(0)
    layer = WindowAttention(8, 2, window_size=4, shift=True).double()
    torch.nn.init.normal_(layer.w_msa.relative_position_bias_table)
    height, width = 6, 7  # padded to 8x8
    x = torch.randn(1, height, width, 8, dtype=torch.float64)
    with collect_attention({"": layer}) as attention:
        layer(x)
    tokens = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 2))[0]
    q, k, _ = layer.w_msa.qkv(tokens).unflatten(2, (3, 2, 4)).unbind(2)
    total = torch.zeros(2, height, width, dtype=torch.float64)
    for y, x in np.ndindex(height, width):
        logits = torch.full((2, 8, 8), -torch.inf, dtype=torch.float64)
        for row, col in np.ndindex(8, 8):
            # windows begin at rows and columns 2 and 6
            if ((y - 2) // 4, (x - 2) // 4) == ((row - 2) // 4, (col - 2) // 4):
                bias = layer.w_msa.relative_position_bias_table[(y - row + 3) * 7 + x - col + 3]
                logits[:, row, col] = (q[y, x] * k[row, col]).sum(1) / 2 + bias
        weights = logits.flatten(1).softmax(1).view(2, 8, 8)[:, :height, :width].detach()
        total += weights
        for head in (0, 1):
            torch.testing.assert_close(attention[""].of_pixel(y, x, head=head), weights[head])
    torch.testing.assert_close(attention[""].received()[0, 0], total)


@pytest.mark.parametrize(
    "layer",
    [
        ELSA(4, 1, 3, group_width=4),  # attends to padding
        QnA(4, 2, stride=2),  # does not
        UpsampleQnA(4, 2),
        WindowAttention(4, 1, window_size=4, shift=True),
        WindowAttention(4, 1, window_size=5),  # attends to padding
        EvenWindowAttention(4, 1, window_size=5),  # does not
        OutlookAttention(4, 1),
    ],
)
def test_mean_of_even_attention(layer):
    """The mean share of even attention is 1 everywhere, at the border too."""
    for weight in layer.parameters():
        torch.nn.init.zeros_(weight)
    with collect_attention({"": layer}) as attention:
        layer(torch.randn(1, 8, 9, 4))
    record = attention[""]
    # Windows that pass over padding give each token the same sum by themselves.
    assert record.received().std() > 0.1 or isinstance(layer, EvenWindowAttention)
    torch.testing.assert_close(record.received(mean=True), torch.ones_like(record.received()))


def test_of_pixel_checks_its_arguments():
    layer = QnA(8, 2)
    with collect_attention({"": layer}) as attention:
        layer(torch.randn(1, 4, 5, 8))
    record = attention[""]
    assert record.of_pixel(3, 4).shape == (4, 5)
    one = record.of_pixel(1, 2, head=1, query=0)
    assert torch.equal(one[:3, 1:4].flatten(), record.maps[0, 0, 1, :, 1, 2])
    assert one.count_nonzero() == 9
    for arguments, message in (
        (dict(y=4, x=0), r"\(y, x\) must be in a map of 4x5, got \(4, 0\)"),
        (dict(y=0, x=-1), r"\(y, x\) must be in a map of 4x5, got \(0, -1\)"),
        (dict(y=0, x=0, head=2), "head must be from 0 to 1, got 2"),
        (dict(y=0, x=0, query=2), "query must be from 0 to 1, got 2"),
        (dict(y=0, x=0, image=1), "image must be from 0 to 0, got 1"),
        (dict(y=0, x=0, ghost=True), "ghost=True needs a layer with a ghost head"),
    ):
        with pytest.raises(ValueError, match=message):
            record.of_pixel(**arguments)


def test_tiles():
    attn = torch.arange(2 * 9 * 4 * 5).reshape(2, 9, 4, 5)
    tiles = tile_kernels(attn)
    assert tiles.shape == (2, 12, 15)
    for y in range(4):
        for x in range(5):
            kernel = attn[:, :, y, x].reshape(2, 3, 3)
            assert torch.equal(tiles[:, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3], kernel)
    wide = tile_kernels(attn[:, :8], (2, 4))
    assert torch.equal(wide[:, 4:6, 12:16], attn[:, :8, 2, 3].reshape(2, 2, 4))
    with pytest.raises(ValueError, match="square number of taps, got 8"):
        tile_kernels(attn[:, :8])
    with pytest.raises(ValueError, match=r"window_size must have 9 taps, got \(2, 4\)"):
        tile_kernels(attn, (2, 4))


class Model(nn.Module):
    """One layer of each kind; the first runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.elsa = ELSA(8, 2, 3, dilation=2, group_width=4)
        self.block = nn.ModuleDict({"qna": QnA(8, 2, stride=2), "mlp": MLP(8, 8)})
        self.up = UpsampleQnA(8, 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.elsa(self.elsa(x))
        return self.up(self.block["mlp"](self.block["qna"](x, mask=mask)))


def test_collect():
    torch.manual_seed(0)
    model = Model()
    layers = find_layers(model)
    assert list(layers) == ["elsa", "block.qna", "up"]
    x = torch.randn(2, 7, 6, 8)
    mask = torch.zeros(2, 7, 6, dtype=torch.bool)
    mask[1, :, 4:] = True
    with collect_attention(layers) as attention:
        out = model(x, mask)
    shapes = {name: (tuple(a.maps.shape), a.map_size) for name, a in attention.items()}
    assert shapes == {
        "elsa": ((2, 1, 2, 9, 7, 6), (7, 6)),
        "block.qna": ((2, 2, 2, 9, 4, 3), (7, 6)),
        "up": ((2, 4, 4, 9, 4, 3), (4, 3)),
    }
    for record in attention.values():
        assert not record.maps.requires_grad
        total = torch.ones(record.maps.shape[:3]) * record.maps.shape[4] * record.maps.shape[5]
        torch.testing.assert_close(record.maps.sum(dim=(3, 4, 5)), total)
    # of the second call
    first = model.elsa(x)
    torch.testing.assert_close(attention["elsa"].maps[:, 0], model.elsa.attention_maps(first))
    assert attention["elsa"].rows[3].tolist() == [1, 3, 5]
    # The mask has arrived: its tokens receive nothing.
    assert (attention["block.qna"].received()[1, ..., 4:] == 0).all()
    assert (attention["block.qna"].received()[0, ..., 4:] > 0).all()
    assert torch.equal(model(x, mask), out)


@pytest.mark.parametrize("error", [False, True])
def test_hooks_are_removed(error):
    model = Model()
    layers = find_layers(model)
    x, mask = torch.randn(1, 4, 4, 8), torch.zeros(1, 4, 4, dtype=torch.bool)
    try:
        with collect_attention(layers) as attention:
            assert all(layer._forward_hooks for layer in layers.values())
            if error:
                model(x[..., :3], mask)
    except ValueError:
        assert error
    assert not any(module._forward_hooks for module in model.modules())
    model(x, mask)
    assert attention == {}


def test_half_precision():
    layer = ELSA(8, 2, 3, group_width=4).to(torch.bfloat16)
    with collect_attention({"": layer}) as attention:
        layer(torch.randn(1, 4, 5, 8, dtype=torch.bfloat16))
    assert attention[""].received().dtype == torch.float32


@pytest.mark.parametrize(
    ("tokens", "pixels", "width"),
    # sizes of a backbone with patches of 4 that halves and rounds up
    [(19, 75, 4), (10, 75, 8), (5, 75, 16), (3, 75, 32), (16, 64, 4), (2, 33, 32), (1, 3, 4)],
)
def test_enlarge(tokens, pixels, width):
    """A token is ``width`` pixels wide, whatever the rounding. Padding is cut off."""
    maps = torch.arange(float(tokens)).expand(1, 2, 8, tokens)
    out = enlarge(maps, (8, pixels), (8, pixels - 1))
    token = (torch.arange(pixels - 1) + 0.5) / width - 0.5
    expected = token.clamp(0, tokens - 1).expand(1, 2, 8, -1)
    torch.testing.assert_close(out, expected)


def record_of(layer: nn.Module, *size: int) -> LayerAttention:
    torch.manual_seed(0)
    with collect_attention({"": layer}) as attention:
        layer(torch.randn(1, *size))
    return attention[""]


def assert_texts_are_whole(figure: Figure) -> None:
    """No text leaves the figure, and no label is longer than its row of panels."""
    labels = [text for axis in figure.axes for text in (axis.title, axis.yaxis.label)]
    shown = [text for text in (*figure.texts, *labels) if text.get_text()]
    assert len(shown) > 3
    for text in shown:
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for axis in figure.axes:
        assert axis.yaxis.label.get_window_extent().height < axis.get_window_extent().height + 12


@pytest.mark.parametrize(
    ("layer", "size", "kinds"),
    [
        (ELSA(12, 3, 3, group_width=4, lam=1), (5, 6, 12), "ghost tiles"),
        (QnA(8, 2, stride=2), (9, 12, 8), "received ghost"),
        (WindowAttention(8, 2, window_size=4, shift=True), (20, 24, 8), "received"),
        (OutlookAttention(8, 2), (10, 12, 8), "kernels"),
        (EvenWindowAttention(8, 1, window_size=4), (5, 8, 8), "kernels"),
    ],
)
def test_figures_of_a_layer(layer, size, kinds, tmp_path):
    """Any layer can be drawn. Labels are whole, and maps of one kind share a colour scale."""
    record = record_of(layer, *size)
    image = np.full((40, 48, 3), 128, dtype=np.uint8)
    figures = draw_layer("a.layer", record, kinds.split(), 2, image, (40, 48), center=(30, 5))
    kinds = [kind for kind in kinds.split() if kind != "ghost" or record.has_ghost]
    assert [*figures] == kinds
    for kind, figure in figures.items():
        save_figure(figure, tmp_path / f"{kind}.png")
        assert (tmp_path / f"{kind}.png").stat().st_size < 200_000
        assert_texts_are_whole(figure)
    if "received" in kinds:
        drawn = [axis.images[-1] for axis in figures["received"].axes if len(axis.images) == 2]
        assert len(drawn) == record.num_queries * (1 + min(2, record.num_heads))
        assert len({artist.get_clim() for artist in drawn}) == 1
        shown = np.stack([artist.get_array() for artist in drawn])
        assert shown.mean() == pytest.approx(1, abs=0.05)  # the unit is an even share


def test_kernels_are_means_and_a_region():
    """The figure shows the mean kernel, and the kernels of the windows in the frame."""
    torch.manual_seed(0)
    kernels = torch.rand(1, 1, 9, 20, 30)
    image = np.zeros((80, 120, 3), np.uint8)  # a window for 4x4 pixels
    draw = partial(draw_kernels, kernels, (3, 3), [["head 0"]], [""], "title", "attention", image)
    for center, first in ((None, (6, 11)), ((79, 0), (12, 0))):
        axes = draw((80, 120), center).axes
        top, left = first
        frame = axes[0].patches[-1].get_bbox()
        assert (frame.y0, frame.x0) == (4 * top - 0.5, 4 * left - 0.5)
        assert (frame.height, frame.width) == (32, 32)
        mean, region = axes[1].images[0].get_array(), axes[3].images[0].get_array()
        np.testing.assert_allclose(mean, kernels.mean((3, 4)).view(3, 3), rtol=1e-6)
        kernel = kernels[0, 0, :, top + 1, left + 2].view(3, 3)
        np.testing.assert_array_equal(region[3:6, 6:9], kernel)
        assert region.shape == (24, 24)


def test_overview(tmp_path):
    """The last layer of each run of like layers has a row, with the maps of its heads."""
    model = nn.ModuleDict({"body": nn.Sequential(*(ELSA(8, n, 3, group_width=4) for n in (2, 2)))})
    model["tail"] = nn.Sequential(QnA(8, 4))
    with collect_attention(find_layers(model)) as attention:
        model["tail"](model["body"](torch.randn(1, 6, 7, 8)))
    notes = representatives(attention)
    assert notes == {"body.1": "last of 2", "tail.0": ""}
    rows = {name: attention[name] for name in notes}
    image = np.full((24, 28, 3), 128, dtype=np.uint8)
    figure = draw_overview(rows, notes, "title", image[:14], (24, 28), max_heads=3)
    axes = np.array(figure.axes[:10]).reshape(2, 5)
    titles = [axis.get_title() for axis in axes[0]]
    assert titles == ["image, one window", "mean of heads", "head 0", "head 1", ""]
    assert axes[1, 4].get_title() == "head 2"  # ELSA has two heads
    labels = ["body.1\nELSA 3x3, 6x7 map\nlast of 2", "tail.0\nQnA 3x3, 6x7 map"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == labels
    assert [len(axis.images) for axis in axes[0]] == [1, 2, 2, 2, 0]
    for row, record in zip(axes, rows.values(), strict=True):
        head = np.array(row[2].images[-1].get_array())
        expected = enlarge(record.received(mean=True).mean(1), (24, 28), (14, 28))[0, 0].numpy()
        assert np.corrcoef(head.ravel(), expected.ravel())[0, 1] > 0.9999
    save_figure(figure, tmp_path / "overview.jpg")
    assert_texts_are_whole(figure)


def test_filters_belong_to_their_heads(monkeypatch):
    """The filters are right even if the picture shows only some of the heads."""
    layer = ELSA(12, 3, 3, group_width=4, lam=1)
    record = record_of(layer, 5, 6, 12)
    drawn = {}

    def draw(kernels, window_size, titles, labels, title, label, *args, signed=False):
        drawn[label] = kernels

    monkeypatch.setattr("mmlocal.visualization.attention_figures.draw_kernels", draw)
    image = np.zeros((20, 24, 3), dtype=np.uint8)
    for shown in (2, 8):
        draw_layer("", record, ("kernels", "ghost"), shown, image, (20, 24))
        maps = record.maps[0, 0]
        assert drawn["attention"].shape == (1, min(3, shown), 9, 5, 6)
        for head in (0, 1):
            channels = range(4 * head, 4 * head + 3)
            filters = maps[head] * layer.ghost_mul[channels].detach().view(3, 9, 1, 1)
            filters = filters + layer.ghost_add[channels].detach().view(3, 9, 1, 1)
            expected = torch.cat([maps[head][None], filters])
            torch.testing.assert_close(drawn["weight"][head], expected)

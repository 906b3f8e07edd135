"""Attention received, tiled kernels, ghost filters, and how they are collected from a model."""

import json
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmlocal.checkpoints.qna import convert_qna_layer
from mmlocal.layers import (
    ELSA,
    MLP,
    SASA,
    EvenWindowAttention,
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
from mmlocal.visualization.attention_figures import draw_kernels, draw_layer, draw_received

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
    torch.testing.assert_close(record.received(mean=True)[:, 0, 0], expected / holders)


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


def test_mean_of_even_attention():
    """Divided by the number of windows that hold it, even attention is the same everywhere."""
    layer = ELSA(4, 1, 3, group_width=4)
    for weight in layer.parameters():
        torch.nn.init.zeros_(weight)
    with collect_attention({"": layer}) as attention:
        layer(torch.randn(1, 8, 9, 4))
    record = attention[""]
    assert record.received().std() > 0.1
    torch.testing.assert_close(record.received(mean=True), torch.full((1, 1, 1, 8, 9), 1 / 9))


def test_of_pixel_checks_its_arguments():
    layer = QnA(8, 2)
    with collect_attention({"": layer}) as attention:
        layer(torch.randn(1, 4, 5, 8))
    record = attention[""]
    assert record.of_pixel(3, 4).shape == (4, 5)
    one = record.of_pixel(1, 2, head=1, query=0)
    assert torch.equal(one[:3, 1:4].flatten(), record.maps[0, 0, 1, :, 1, 2])
    assert one.sum() == one[:3, 1:4].sum()
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
    with pytest.raises(ValueError, match="square number of taps, got 8"):
        tile_kernels(attn[:, :8])


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


@pytest.mark.parametrize("values", [torch.rand(2, 3, 9, 4, 6), torch.ones(1, 5, 1, 4, 6)])
def test_figures(values, tmp_path):
    """Any number of panels can be drawn, and also maps without contrast."""
    titles = [[f"{i}-{j}" for j in range(values.shape[1])] for i in range(values.shape[0])]
    image = np.full((16, 24, 3), 128, dtype=np.uint8)
    maps = enlarge(values.sum(dim=2), (16, 24), (16, 24))
    for figure in (
        draw_received(maps, titles, "title", image),
        draw_kernels(values, titles, "title", "label"),
        draw_kernels(values - 0.5, titles, "title", "label", signed=True),
    ):
        shown = [axis.get_title() for axis in figure.axes if axis.get_title()]
        assert [name for name in shown if name != "image"] == [*chain(*titles)]
        drawn = [axis.images[-1] for axis in figure.axes if "-" in axis.get_title()]
        assert len({artist.get_clim() for artist in drawn}) == 1
        figure.savefig(tmp_path / "figure.png")


def test_filters_belong_to_their_heads(monkeypatch):
    """The filters are right even if the picture shows only some of the heads."""
    torch.manual_seed(0)
    layer = ELSA(12, 3, 3, group_width=4, lam=1)
    with collect_attention({"": layer}) as attention:
        layer(torch.randn(1, 5, 6, 12))
    drawn = {}

    def draw(kernels, titles, title, label, signed=False):
        drawn[label] = kernels

    monkeypatch.setattr("mmlocal.visualization.attention_figures.draw_kernels", draw)
    image = np.zeros((20, 24, 3), dtype=np.uint8)
    for shown in (2, 8):
        assert [*draw_layer("", layer, attention[""], shown, image, (20, 24))] == [
            "received", "kernels", "ghost"
        ]  # fmt: skip
        maps = attention[""].maps[0, 0]
        assert drawn["attention"].shape == (1, min(3, shown), 9, 5, 6)
        for head in (0, 1):
            channels = range(4 * head, 4 * head + 3)
            filters = maps[head] * layer.ghost_mul[channels].detach().view(3, 9, 1, 1)
            filters = filters + layer.ghost_add[channels].detach().view(3, 9, 1, 1)
            expected = torch.cat([maps[head][None], filters])
            torch.testing.assert_close(drawn["weight"][head], expected)

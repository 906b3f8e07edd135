"""Queries that read the pyramids of several tasks."""

import pytest
import torch

from mmlocal.layers import InterTaskQueries
from mmlocal.ops import deformable_attention_from_offsets

SHAPES = [(4, 5)] * 3 + [(2, 3)] * 3


def make_pyramids(layers: int, batch: int = 2, channels: int = 16) -> list:
    pixels = sum(height * width for height, width in SHAPES)
    return [(torch.randn(batch, pixels, channels), SHAPES) for _ in range(layers)]


def make_queries(**settings) -> InterTaskQueries:
    torch.manual_seed(0)
    defaults = dict(num_layers=2, num_queries=5, num_heads=4, num_points=2)
    return InterTaskQueries(16, len(SHAPES), **(defaults | settings))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes_and_gradients(batch):
    queries = make_queries()
    states, references = queries(make_pyramids(2, batch))
    assert states.shape == (2, batch, 5, 16)
    assert references.shape == (batch, 5, 2)
    assert ((references > 0) & (references < 1)).all()
    states.sum().backward()
    assert all(parameter.grad is not None for parameter in queries.parameters())


def test_layer_written_out():
    """The second layer by the definition of each part, on the output of the first."""
    queries = make_queries(num_heads=2).double().eval()
    pyramids = [(value.double(), shapes) for value, shapes in make_pyramids(2)]
    states, references = queries(pyramids)
    layer = queries.layers[1]
    positions = queries.positions.weight

    x = states[0]
    heads = [(x + positions).unflatten(2, (2, 8))] * 2 + [x.unflatten(2, (2, 8))]
    projected = layer.self_attention.in_proj_weight.view(3, 16, 16)
    biases = layer.self_attention.in_proj_bias.view(3, 16)
    q, k, v = (
        (h.flatten(2) @ w.T + b).unflatten(2, (2, 8)).transpose(1, 2)
        for h, w, b in zip(heads, projected, biases, strict=True)
    )
    mixed = (q @ k.transpose(2, 3) / 8**0.5).softmax(dim=3) @ v
    x = layer.norms[0](x + layer.self_attention.out_proj(mixed.transpose(1, 2).flatten(2)))

    own, (value, shapes) = x + positions, pyramids[1]
    read = deformable_attention_from_offsets(
        layer.attention.value_proj(value).unflatten(2, (2, 8)),
        shapes,
        references[:, :, None],
        layer.attention.sampling_offsets(own).unflatten(2, (2, 6, 2, 2)),
        layer.attention.attention_weights(own).unflatten(2, (2, 6, 2)),
        padding_mode="border",
        backend="reference",
    )
    x = layer.norms[1](x + layer.attention.output_proj(read))
    x = layer.norms[2](x + layer.ffn[3](layer.ffn[0](x).relu()))
    torch.testing.assert_close(states[1], x)


def test_queries_do_not_depend_on_their_order():
    queries = make_queries()
    pyramids = make_pyramids(2)
    states, _ = queries(pyramids)
    order = torch.tensor([3, 1, 4, 0, 2])
    with torch.no_grad():
        for table in (queries.query, queries.positions):
            table.weight.copy_(table.weight[order])
    torch.testing.assert_close(queries(pyramids)[0], states[:, :, order])


def test_wrong_number_of_pyramids():
    with pytest.raises(ValueError, match="one entry for each of the 2 layers, got 3"):
        make_queries()(make_pyramids(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_heads=3), "num_heads"),
        (dict(num_queries=0), "num_queries must be at least 1"),
        (dict(num_layers=0), "num_layers must be at least 1"),
        (dict(num_points=0), "num_points must be at least 1"),
        (dict(dropout=1.5), "dropout"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        make_queries(**settings)

"""Deformable attention as a layer: mmcv's module, loops, scaled gradients, and bad input."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from demt_golden import load_arrays
from torch import nn

from mmlocal.layers import DeformableAttention
from mmlocal.ops import deformable_attention

SHAPES = [(5, 7), (5, 7), (3, 4), (2, 1)]
PIXELS = sum(h * w for h, w in SHAPES)


def make(**kwargs) -> DeformableAttention:
    """A small layer. Its offsets depend on the query, and some positions are outside the maps."""
    torch.manual_seed(0)
    layer = DeformableAttention(
        **dict(embed_dims=12, num_heads=2, num_maps=4, num_points=3) | kwargs
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return layer


def inputs(batch: int = 2, queries: int = 6, maps: int = 4, **kwargs) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return (
        torch.randn(batch, queries, 12, **kwargs),
        torch.randn(batch, PIXELS, 12, **kwargs),
        torch.rand(batch, queries, maps, 2, **kwargs),
    )


def test_parameters_and_their_first_values_are_those_of_mmcv():
    ops = pytest.importorskip("mmcv.ops", reason="mmcv's compiled ops are not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heads of 6 channels are slow in mmcv
        official = ops.MultiScaleDeformableAttention(24, 4, 4, 5, batch_first=True)
    layer = DeformableAttention(24, 4, num_maps=4, num_points=5)
    state = official.state_dict()
    for name, parameter in layer.state_dict().items():
        if "proj.weight" not in name:
            torch.testing.assert_close(parameter, state[name], rtol=0, atol=1e-6)
    layer.load_state_dict(state)


@pytest.mark.parametrize("tasks", [1, 4])
def test_mmcv(tasks):
    """Values and gradients of mmcv's module, without its dropout and residual connection."""
    ops = pytest.importorskip("mmcv.ops", reason="mmcv's compiled ops are not installed")
    shapes = [size for size in ((5, 7), (3, 4), (2, 2)) for _ in range(tasks)]
    pixels = sum(h * w for h, w in shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        official = ops.MultiScaleDeformableAttention(
            12, 2, 3 * tasks, 3, dropout=0.0, batch_first=True
        )
    layer = make(num_maps=3 * tasks, padding_mode="zeros")
    official.load_state_dict(layer.state_dict())
    query, value = torch.randn(2, 6, 12), torch.randn(2, pixels, 12)
    points = torch.rand(2, 6, 3 * tasks, 2)
    tensors = [x.requires_grad_() for x in (query, value, points)]
    sizes = torch.tensor(shapes)
    starts = sizes.prod(dim=1).cumsum(0) - sizes.prod(dim=1)
    expected = official(
        query=query,
        value=value,
        reference_points=points,
        spatial_shapes=sizes,
        level_start_index=starts,
        identity=torch.zeros_like(query),
    )
    out = layer(query, value, points, shapes)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, [*tensors, *layer.parameters()], grad)
    theirs = torch.autograd.grad(expected, [*tensors, *official.parameters()], grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def written_out(layer: DeformableAttention, query, value, points, shapes) -> torch.Tensor:
    """The equation for one sample, one query, head, map and point after the other."""
    heads, maps, number = layer.num_heads, layer.num_maps, layer.num_points
    width_of_head = layer.embed_dims // heads
    projected = layer.value_proj(value).split([h * w for h, w in shapes])
    rows = []
    for q, point in zip(query, points, strict=True):
        offsets = layer.sampling_offsets(q).view(heads, maps, number, 2)
        weights = layer.attention_weights(q).view(heads, maps * number).softmax(dim=1)
        parts = []
        for n in range(heads):
            total = torch.zeros(width_of_head, dtype=query.dtype)
            for m, (h, w) in enumerate(shapes):
                plane = projected[m][:, n * width_of_head : (n + 1) * width_of_head]
                plane = plane.T.reshape(1, width_of_head, h, w)
                for p in range(number):
                    place = point[m % len(point)] + offsets[n, m, p] / torch.tensor([w, h])
                    grid = (2 * place - 1).view(1, 1, 1, 2)
                    sample = F.grid_sample(
                        plane, grid, padding_mode=layer.padding_mode, align_corners=False
                    )
                    total = total + weights[n, m * number + p] * sample.flatten()
            parts.append(total)
        rows.append(torch.cat(parts))
    return layer.output_proj(torch.stack(rows))


@pytest.mark.parametrize("padding_mode", ["border", "zeros"])
@pytest.mark.parametrize("maps", [1, 4])
def test_equation(padding_mode, maps):
    layer = make(padding_mode=padding_mode).double()
    query, value, points = inputs(maps=maps, dtype=torch.float64)
    with torch.no_grad():
        samples = zip(query, value, points, strict=True)
        expected = torch.stack([written_out(layer, *sample, SHAPES) for sample in samples])
        out = layer(query, value, points, SHAPES)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        shared = layer(query, value, points[:1], SHAPES)
        torch.testing.assert_close(shared[:1], expected[:1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding_mode", ["border", "zeros"])
def test_sampled_positions(padding_mode):
    """The op with these positions and weights gives what the layer gives."""
    layer = make(padding_mode=padding_mode).double()
    query, value, points = inputs(dtype=torch.float64)
    positions, weights = layer.sampled_positions(query, points, SHAPES)
    assert positions.shape == (2, 6, 2, 4, 3, 2)
    torch.testing.assert_close(weights.sum(dim=(3, 4)), torch.ones(2, 6, 2, dtype=torch.float64))
    heads = layer.value_proj(value).unflatten(2, (2, -1))
    out = deformable_attention(heads, SHAPES, positions, weights)
    torch.testing.assert_close(layer.output_proj(out), layer(query, value, points, SHAPES))
    assert ((positions < 0) | (positions > 1)).any() == (padding_mode == "zeros")


@pytest.mark.parametrize("padding_mode", ["border", "zeros"])
def test_golden_sampling_core(padding_mode):
    """Golden positions and weights, as reference points and offsets of the layer."""
    golden, _ = load_arrays("itsa_sampling_core")
    name = "clamp" if padding_mode == "border" else "zeros"
    value, places = golden["value"], golden["sampling_locations"]
    out = deformable_attention(
        value,
        [(5, 7)] * 4 + [(3, 4)] * 4 + [(2, 2)] * 4,
        places,
        golden["attention_weights"],
        padding_mode=padding_mode,
    )
    torch.testing.assert_close(out, golden[f"{name}.output"], rtol=1e-4, atol=1e-5)


def test_first_positions_are_those_of_deformable_detr():
    """Each of four heads has a direction, and point k is k pixels away. Weights are equal."""
    layer = DeformableAttention(16, 4, num_maps=2, num_points=3, padding_mode="zeros")
    points = torch.full((1, 1, 1, 2), 0.5)
    positions, weights = layer.sampled_positions(torch.randn(1, 1, 16), points, [(8, 16), (4, 8)])
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    distances = torch.arange(1.0, 4)[:, None]
    for index, size in enumerate((torch.tensor([16, 8]), torch.tensor([8, 4]))):
        expected = 0.5 + directions[:, None] * distances / size
        torch.testing.assert_close(positions[0, 0, :, index], expected)
    assert (weights == 1 / 6).all()


def all_gradients(layer: nn.Module) -> dict[str, torch.Tensor]:
    tensors = [x.requires_grad_() for x in inputs()]
    layer.zero_grad()
    layer(*tensors, SHAPES).square().sum().backward()
    named = dict(zip(("query", "value", "points"), tensors, strict=True))
    return {name: x.grad.clone() for name, x in (named | dict(layer.named_parameters())).items()}


OFFSETS = {"sampling_offsets.weight", "sampling_offsets.bias"}


def test_scaled_gradients_are_those_of_a_hook():
    hooked, layer = make(), make(offset_grad_scale=100.0)
    plain = all_gradients(make())
    for parameter in hooked.sampling_offsets.parameters():
        parameter.register_hook(lambda grad: grad * 100.0)
    expected, found = all_gradients(hooked), all_gradients(layer)
    assert set(expected) == set(found)
    for name, grad in found.items():
        assert torch.equal(grad, expected[name]), name
        assert torch.equal(grad, plain[name]) == (name not in OFFSETS), name
    args = inputs()
    assert torch.equal(layer(*args, SHAPES), hooked(*args, SHAPES))
    with torch.no_grad():
        assert torch.equal(layer(*args, SHAPES), hooked(*args, SHAPES))


def test_scale_of_the_whole_module():
    plain = all_gradients(make())
    found = all_gradients(make(offset_grad_scale=30.0, grad_scale_scope="module"))
    for name, grad in found.items():
        factor = 1.0 if name in ("query", "value", "points") else 30.0
        assert torch.equal(grad, plain[name] * factor), name


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_keep_the_scale(copied):
    layer = make(offset_grad_scale=7.0)
    expected = all_gradients(layer)
    for name, grad in all_gradients(copied(layer)).items():
        assert torch.equal(grad, expected[name]), name


def test_compiled_layers_keep_the_scale():
    expected = all_gradients(make(offset_grad_scale=7.0))
    layer = make(offset_grad_scale=7.0)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    tensors = [x.requires_grad_() for x in inputs()]
    compiled(*tensors, SHAPES).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_distributed_training_keeps_the_scale():
    expected = all_gradients(make(offset_grad_scale=7.0))
    group = dict(store=torch.distributed.HashStore(), rank=0, world_size=1)
    torch.distributed.init_process_group("gloo", **group)
    try:
        layer = make(offset_grad_scale=7.0)
        wrapped = nn.parallel.DistributedDataParallel(layer)
        wrapped(*inputs(), SHAPES).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter.grad, expected[name]), name
    finally:
        torch.distributed.destroy_process_group()


def test_the_scale_comes_before_weight_decay():
    """A step of SGD multiplies the gradient, and not the decay."""
    layer = make(offset_grad_scale=100.0)
    before = layer.sampling_offsets.weight.detach().clone()
    plain = all_gradients(make())["sampling_offsets.weight"]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.01)
    all_gradients(layer)
    optimizer.step()
    expected = before - 0.1 * (100 * plain + 0.01 * before)
    torch.testing.assert_close(layer.sampling_offsets.weight.detach(), expected)


def test_clamped_coordinates_have_no_gradient():
    """All positions are beyond the right border: offsets cannot move them along x."""
    layer = make(padding_mode="border")
    with torch.no_grad():
        layer.sampling_offsets.weight.zero_()
        layer.sampling_offsets.bias.view(-1, 2).copy_(torch.tensor([50.0, 0.25]))
    query, value, points = inputs()
    points = torch.full_like(points, 0.5).requires_grad_()
    layer(query, value, points, SHAPES).square().sum().backward()
    grads = layer.sampling_offsets.bias.grad.view(2, 4, 3, 2)
    assert (grads[..., 0] == 0).all()
    assert (grads[:, :3, :, 1] != 0).all()
    assert (points.grad[..., 0] == 0).all()


def test_export():
    layer = make(offset_grad_scale=10.0).eval()
    args = inputs()
    program = torch.export.export(layer, (*args, SHAPES))
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    ours = [t for t in targets if "mmlocal" in t]
    assert ours == ["mmlocal.deformable_attention_from_offsets.default"]
    torch.testing.assert_close(program.module()(*args, SHAPES), layer(*args, SHAPES))


def test_autocast():
    layer = make()
    args = inputs()
    exact = layer(*args, SHAPES)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(*args, SHAPES)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() / exact.abs().max() < 5e-2
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_heads": 5}, ValueError, "num_heads must divide embed_dims=12, got num_heads=5"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_maps": 0}, ValueError, "num_maps must be at least 1, got 0"),
        ({"num_points": 0}, ValueError, "num_points must be at least 1, got 0"),
        ({"num_points": 2.0}, TypeError, "num_points must be an integer, got 2.0"),
        ({"padding_mode": "clamp"}, ValueError, "padding_mode must be one of border, zeros, got"),
        ({"grad_scale_scope": "all"}, ValueError, "grad_scale_scope must be one of offsets, mod"),
        ({"offset_grad_scale": 0}, ValueError, "offset_grad_scale must be positive, got 0"),
        ({"offset_grad_scale": float("inf")}, ValueError, "offset_grad_scale must be finite"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_bad_input():
    layer, (query, value, points) = make(), inputs()
    with pytest.raises(ValueError, match=r"query must be \(B, Q, embed_dims=12\), got \(6, 12\)"):
        layer(query[0], value, points, SHAPES)
    with pytest.raises(ValueError, match=r"value must be \(B, S, embed_dims=12\), got"):
        layer(query, value[..., :6], points, SHAPES)
    with pytest.raises(ValueError, match="spatial_shapes must have num_maps=4 entries, got 3"):
        layer(query, value, points, SHAPES[:3])
    with pytest.raises(ValueError, match="value must have a row for each of the"):
        layer(query, value[:, 1:], points, SHAPES)
    with pytest.raises(ValueError, match="reference_points must have shape"):
        layer(query, value, points[:, :2], SHAPES)
    with pytest.raises(ValueError, match="backend must be one of"):
        make(backend="no")(query, value, points, SHAPES)

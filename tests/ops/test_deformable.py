"""Deformable attention: its definition, its backends against it, and how it meets PyTorch."""

import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import (
    BACKWARD_CHECKS,
    FLOATS,
    leaves,
    make_cotangent,
    peak_memory,
    restride,
    running,
    worst_error,
)
from cases import make_deformable as make
from cases import run as run_op
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from mmlocal.ops import deformable_attention, deformable_attention_from_offsets
from mmlocal.ops.deformable import BACKENDS as ALL_BACKENDS
from mmlocal.ops.deformable import eager
from mmlocal.ops.deformable.analysis import CASES, FLOPS, make_inputs, spatial_shapes

GOLDEN = Path(__file__).parents[1] / "data" / "mtl" / "itsa_sampling_core.npz"
BACKENDS = running(ALL_BACKENDS)
NAMES = [b.name for b in BACKENDS]
FAST = [b.name for b in BACKENDS if b.name != "reference"]
FUNCTIONS = {False: deformable_attention, True: deformable_attention_from_offsets}
over_backends = pytest.mark.parametrize("backend", NAMES)
over_fast = pytest.mark.parametrize("backend", FAST)
over_forms = pytest.mark.parametrize("fused", [False, True], ids=["locations", "offsets"])
over_paddings = pytest.mark.parametrize("padding", ["zeros", "border"])
SHAPES = [
    # batch, queries, heads, channels per head, points, and pairs of height and width
    (1, 1, 1, 1, 1, (1, 1)),
    (2, 3, 2, 3, 2, (1, 1), (1, 5), (4, 1)),  # maps of one pixel, row and column
    (2, 5, 3, 2, 4, (5, 6), (3, 3), (2, 2)),
    (1, 7, 4, 70, 16, (7, 5), (4, 3)),  # as in ITSA
    (1, 4, 1, 33, 17, (3, 4)),
    (0, 3, 2, 4, 2, (3, 4)),  # empty batch
    (2, 0, 2, 4, 2, (3, 4)),  # no query
]
SMALL = SHAPES[2]


def shape_id(shape: tuple) -> str:
    b, q, n, c, p, *maps = shape
    return f"B{b}-Q{q}-heads{n}-C{n * c}-P{p}-" + "+".join(f"{h}x{w}" for h, w in maps)


over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=shape_id)


def run(fused, tensors, settings, **kwargs):
    return run_op(FUNCTIONS[fused], tensors, settings, **kwargs)


def pixel(rows, height, width, y, x, padding):
    """The values of all channels at one whole position; ``rows`` is ``(height * width, C)``."""
    if padding == "border":
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    if 0 <= y < height and 0 <= x < width:
        return rows[y * width + x]
    return torch.zeros_like(rows[0])


def naive(value, locations, weights, shapes, padding):
    """The equation of the docstring, one sample at a time."""
    batch, queries, heads, _, points = weights.shape
    out = value.new_zeros(batch, queries, heads, value.shape[3])
    for b, q, n in itertools.product(range(batch), range(queries), range(heads)):
        first = 0
        for m, (height, width) in enumerate(shapes):
            rows = value[b, first : first + height * width, n]
            first += height * width
            for p in range(points):
                x = locations[b, q, n, m, p, 0].item() * width - 0.5
                y = locations[b, q, n, m, p, 1].item() * height - 0.5
                left, top = math.floor(x), math.floor(y)
                for row, col in itertools.product((top, top + 1), (left, left + 1)):
                    share = (1 - abs(x - col)) * (1 - abs(y - row))
                    own = pixel(rows, height, width, row, col, padding)
                    out[b, q, n] += weights[b, q, n, m, p] * share * own
    return out.flatten(2)


@over_backends
@over_paddings
@pytest.mark.parametrize("shape", SHAPES[:3], ids=shape_id)
def test_equation(shape, padding, backend):
    tensors, settings = make(shape)
    with torch.no_grad():
        out = deformable_attention(**tensors, **settings, padding_mode=padding, backend=backend)
        expected = naive(*tensors.values(), settings["spatial_shapes"], padding)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)


@over_backends
@over_paddings
def test_fused_form(padding, backend):
    """Offsets in pixels, and one softmax over the points of all maps."""
    tensors, settings = make(SMALL, fused=True)
    tensors["sampling_offsets"] = tensors["sampling_offsets"].detach() + 0.01  # between pixels
    sizes = torch.tensor(settings["spatial_shapes"]).double().flip(1)[:, None]
    for shared in ((slice(None), slice(None)), (slice(1), slice(None)), (slice(1), slice(1))):
        points = tensors["reference_points"].detach()[shared[0], :, shared[1]]
        own = leaves(tensors | {"reference_points": points})
        ours = run(True, own, settings, padding_mode=padding, backend=backend)
        value, points, offsets, logits = own.values()
        locations = points[:, :, None, :, None] + offsets / sizes
        out = deformable_attention(
            value,
            settings["spatial_shapes"],
            locations,
            logits.flatten(3).softmax(dim=3).view(logits.shape),
            padding_mode=padding,
            backend="reference",
        )
        grads = torch.autograd.grad(out, list(own.values()), make_cotangent(out))
        expected = {"out": out.detach()} | {
            f"grad of {n}": g for n, g in zip(own, grads, strict=True)
        }
        assert worst_error(ours, expected) < 1e-13


@over_backends
@pytest.mark.parametrize("name", ["zeros", "clamp"])
def test_golden(name, backend):
    """The samples of ITSA: four tasks with three levels each, outside the maps as well."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        golden = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
        shapes = json.loads(str(file["meta"]))["shapes_hw"]
    names = ("value", "sampling_locations", "attention_weights")
    tensors = leaves({n: golden[n].double() for n in names})
    out = deformable_attention(
        **tensors,
        spatial_shapes=shapes,
        padding_mode={"zeros": "zeros", "clamp": "border"}[name],
        backend=backend,
    )
    grads = torch.autograd.grad(out, list(tensors.values()), golden["grad_output"].double())
    ours = {"output": out.detach()} | {f"grad_{n}": g for n, g in zip(names, grads, strict=True)}
    assert worst_error(ours, {n: golden[f"{name}.{n}"] for n in ours}) < 1e-7  # float32 numbers


@over_backends
def test_parity_with_mmcv(backend):
    module = pytest.importorskip("mmcv.ops.multi_scale_deform_attn")
    tensors, settings = make((2, 11, 3, 5, 4, (6, 8), (3, 4), (1, 2)))
    shapes = torch.tensor(settings["spatial_shapes"])
    ours = run(False, tensors, {"spatial_shapes": shapes}, backend=backend)
    value, locations, weights = tensors.values()
    out = module.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    grads = torch.autograd.grad(out, list(tensors.values()), make_cotangent(out))
    expected = {"out": out.detach()} | {
        f"grad of {n}": g for n, g in zip(tensors, grads, strict=True)
    }
    assert worst_error(ours, expected) < 1e-13


@over_backends
@over_paddings
@over_forms
def test_gradcheck(fused, padding, backend):
    for shape in [(1, 2, 2, 2, 2, (3, 4), (2, 1)), (2, 1, 1, 1, 3, (2, 2))]:
        tensors, settings = make(shape, fused)
        # No point lies between two pixels, where the derivative jumps.
        moved = {n: x.detach() + 0.03 * (n[:2] in ("sa", "re")) for n, x in tensors.items()}
        names = list(moved)

        def op(*args, names=names, settings=settings):
            call = dict(zip(names, args, strict=True))
            return FUNCTIONS[fused](**call, **settings, padding_mode=padding, backend=backend)

        assert gradcheck(op, tuple(leaves(moved).values()))


def test_second_derivatives_of_reference():
    tensors, settings = make((1, 2, 1, 2, 2, (3, 2)))
    names = list(tensors)

    def op(*args):
        return deformable_attention(
            **dict(zip(names, args, strict=True)), **settings, backend="reference"
        )

    assert gradgradcheck(op, tuple(tensors.values()))


@over_fast
@over_forms
def test_second_derivatives_are_refused_elsewhere(fused, backend):
    tensors, settings = make(SMALL, fused)
    out = FUNCTIONS[fused](**tensors, **settings, backend=backend)
    (first,) = torch.autograd.grad(out.square().sum(), tensors["value"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"deformable_attention.*: .* has no second derivatives"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@over_shapes
@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
def test_backend_holds_its_tolerance(backend, shape, dtype):
    """Against the definition in float64 on the same (rounded) numbers."""
    for fused, padding in itertools.product((False, True), ("zeros", "border")):
        tensors, settings = make(shape, fused, dtype)
        settings |= dict(padding_mode=padding)
        exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
        expected = run(fused, exact, settings, backend="reference")
        ours = run(fused, tensors, settings, backend=backend.name)
        assert all(x.dtype == dtype for x in ours.values())
        assert worst_error(ours, expected) <= backend.atol[dtype], (fused, padding)


@over_forms
def test_eager_works_in_chunks_of_queries(fused, monkeypatch):
    tensors, settings = make((2, 7, 3, 2, 4, (5, 6), (3, 3)), fused)
    expected = run(fused, tensors, settings, backend="reference")
    for queries in (1, 2, 5, 7):
        monkeypatch.setitem(eager._CHUNK, "cpu", queries * 4 * 4 * 3 * 2)
        assert len(eager.chunks(tensors["value"], 4, 7)) == -(-7 // queries)
        assert worst_error(run(fused, tensors, settings, backend="eager"), expected) < 1e-13


@over_backends
@over_forms
@pytest.mark.parametrize("layout", ["channels-last", "sliced", "transposed"])
def test_memory_layouts(layout, fused, backend):
    tensors, settings = make((2, 5, 3, 2, 4, (5, 6), (3, 3)), fused)
    changed = {n: restride(x, layout).requires_grad_() for n, x in tensors.items()}
    assert not changed["value"].is_contiguous()
    expected = run(fused, tensors, settings, backend="reference")
    assert worst_error(run(fused, changed, settings, backend=backend), expected) < 1e-13


@over_backends
def test_mixed_dtypes(backend):
    """As in mixed precision: values in bfloat16, positions and weights in float32."""
    tensors, settings = make(SMALL, True, torch.float32)
    mixed = leaves(tensors | {"value": tensors["value"].bfloat16()})
    ours = run(True, mixed, settings, backend=backend)
    assert [x.dtype for x in ours.values()] == [torch.bfloat16] * 2 + [torch.float32] * 3
    expected = run(True, leaves(mixed, torch.float64), settings, backend="reference")
    assert worst_error(ours, expected) < 8e-3


@over_backends
@over_forms
def test_autocast_does_not_touch_the_op(fused, backend):
    tensors, settings = make(SMALL, fused, torch.float32)
    expected = run(fused, tensors, settings, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(fused, tensors, settings, backend=backend)
    assert all(torch.equal(ours[name], x) for name, x in expected.items())


@over_backends
@over_forms
def test_some_inputs_may_be_frozen(fused, backend):
    tensors, settings = make(SMALL, fused)
    full = run(fused, tensors, settings, backend=backend)
    for live in tensors:
        part = {n: x.detach().requires_grad_(n == live) for n, x in tensors.items()}
        grads = run(fused, part, settings, backend=backend)
        assert set(grads) == {"out", f"grad of {live}"}
        assert worst_error(grads, {name: full[name] for name in grads}) < 1e-13
    with torch.no_grad():
        assert not FUNCTIONS[fused](**tensors, **settings, backend=backend).requires_grad


@over_backends
@over_forms
def test_inputs_are_left_alone(fused, backend):
    tensors, settings = make((1, 4, 2, 16, 4, (4, 4)), fused, torch.float32)
    before = {n: x.detach().clone() for n, x in tensors.items()}
    result = run(fused, tensors, settings, backend=backend)
    assert all(torch.equal(x, before[n]) for n, x in tensors.items())
    assert all(
        x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
        for x, y in itertools.product(result.values(), tensors.values())
    )


@over_backends
@over_paddings
@pytest.mark.parametrize("far", [math.inf, -math.inf, 1e30, -1e30, 3e9, -3e9], ids=str)
def test_far_locations(far, padding, backend):
    """They add nothing, or the border pixel. Their own gradient is 0."""
    value = torch.arange(1.0, 13).view(1, 12, 1, 1).requires_grad_()
    locations = torch.full((1, 1, 1, 1, 1, 2), 0.5)
    locations[..., 0] = far
    locations.requires_grad_()
    out = deformable_attention(
        value, [(3, 4)], locations, torch.ones(1, 1, 1, 1, 1), padding_mode=padding, backend=backend
    )
    grads = torch.autograd.grad(out.sum(), (value, locations))
    border = 8.0 if far > 0 else 5.0  # of the middle row
    assert out.item() == (border if padding == "border" else 0)
    assert grads[0].sum() == (1 if padding == "border" else 0)
    assert grads[1][..., 0].item() == 0


@over_backends
@over_paddings
@pytest.mark.parametrize("axis", [0, 1])
def test_a_location_without_a_number(axis, padding, backend):
    """NaN reaches the output of its query and head, and no gradient but that of its weight."""
    tensors, settings = make((1, 3, 2, 4, 2, (3, 4), (2, 2)), dtype=torch.float32)
    with torch.no_grad():
        tensors["sampling_locations"][0, 1, 1, 0, 1, axis] = torch.nan
    ours = run(False, tensors, settings, padding_mode=padding, backend=backend)
    bad = ours["out"].isnan().unflatten(2, (2, 4))
    assert bad[0, 1, 1].all()
    assert bad.sum() == 4
    assert ours["grad of value"].isfinite().all()
    assert ours["grad of sampling_locations"].isfinite().all()
    assert not ours["grad of sampling_locations"][0, 1, 1, 0, 1].any()
    assert ours["grad of attention_weights"].isnan().sum() == 1


@over_backends
def test_large_logits_do_not_overflow(backend):
    tensors, settings = make(SMALL, True, torch.float16)
    tensors["attention_logits"] = (tensors["attention_logits"].detach() * 1e4).requires_grad_()
    results = run(True, tensors, settings, backend=backend)
    assert all(x.isfinite().all() for x in results.values())


@over_backends
def test_border_is_the_clamped_location(backend):
    """As if locations were cut to the centres of border pixels before."""
    tensors, settings = make(SMALL)
    sizes = torch.tensor(settings["spatial_shapes"]).double().flip(1)[:, None]
    cut = tensors["sampling_locations"].detach().clamp(min=0.5 / sizes, max=1 - 0.5 / sizes)
    call = functools.partial(deformable_attention, **settings, backend=backend)
    ours = call(**tensors, padding_mode="border")
    torch.testing.assert_close(ours, call(**tensors | {"sampling_locations": cut}))


@over_backends
@over_forms
def test_order_of_the_maps(fused, backend):
    """Maps are independent: another order of everything leaves the sum."""
    tensors, settings = make((1, 4, 2, 3, 2, (3, 4), (2, 5), (3, 1)), fused)
    shapes, order = settings["spatial_shapes"], [2, 0, 1]
    parts = tensors["value"].split([h * w for h, w in shapes], dim=1)
    changed = {"value": torch.cat([parts[i] for i in order], dim=1)}
    for name, x in list(tensors.items())[1:]:
        changed[name] = x[:, :, order] if x.dim() == 4 else x[:, :, :, order]
    out = FUNCTIONS[fused](**tensors, **settings, backend=backend)
    other = FUNCTIONS[fused](**changed, spatial_shapes=[shapes[i] for i in order], backend=backend)
    torch.testing.assert_close(other, out)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.deterministic], ids=lambda b: b.name)
@over_forms
def test_two_runs_are_bit_equal(fused, backend):
    tensors, settings = make((2, 40, 3, 8, 4, (5, 6), (3, 3)), fused, torch.float32)
    first = run(fused, tensors, settings, backend=backend.name)
    torch.use_deterministic_algorithms(True)
    try:
        second = run(fused, tensors, settings, backend=backend.name)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, second[n]) for n, x in first.items())


@over_fast
@over_forms
def test_opcheck(fused, backend):
    """Schema, fake tensors (shapes *and* strides), autograd registration, AOT autograd."""
    name = FUNCTIONS[fused].__name__
    for layout in (torch.channels_last, torch.contiguous_format):
        tensors, settings = make((2, 3, 3, 2, 2, (3, 4), (2, 1)), fused, torch.float32)
        inputs = [x.detach() for x in tensors.values()]
        inputs[0] = inputs[0].contiguous(memory_format=layout)
        shapes = [side for pair in settings["spatial_shapes"] for side in pair]
        live = [x.clone().requires_grad_() for x in inputs]
        torch.library.opcheck(getattr(torch.ops.mmlocal, name), (*live, shapes, "border", backend))
        backward = getattr(torch.ops.mmlocal, f"{name}_backward")
        cotangent = torch.randn(2, 3, 6)
        for i in range(len(inputs)):
            needed = [i == j for j in range(len(inputs))]
            args = (cotangent, *inputs, shapes, "border", backend, needed)
            torch.library.opcheck(backward, args, **BACKWARD_CHECKS)


@over_fast
@over_forms
@pytest.mark.parametrize(
    ("compiler", "dynamic"),
    [("inductor", False), ("aot_eager", False), ("aot_eager", True)],
    ids=["inductor", "aot", "aot-dynamic"],
)
def test_compile(compiler, dynamic, fused, backend):
    torch.compiler.reset()

    @functools.partial(torch.compile, fullgraph=True, backend=compiler, dynamic=dynamic)
    def compiled(shapes, **tensors):
        return FUNCTIONS[fused](**tensors, spatial_shapes=shapes, backend=backend)

    for shape in [(2, 6, 3, 2, 2, (3, 4), (2, 3)), (2, 9, 3, 2, 2, (5, 4), (3, 2))]:
        tensors, settings = make(shape, fused, torch.float32)
        expected = run(fused, tensors, settings, backend=backend)
        out = compiled(settings["spatial_shapes"], **tensors)
        grads = torch.autograd.grad(out, list(tensors.values()), make_cotangent(out))
        ours = {"out": out.detach()} | {
            f"grad of {n}": g for n, g in zip(tensors, grads, strict=True)
        }
        assert worst_error(ours, expected) < 1e-5


def test_several_sizes_compile_once():
    """The sizes of the maps are symbols, as are batch and queries."""
    torch.compiler.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    @functools.partial(torch.compile, fullgraph=True, dynamic=True, backend=count)
    def compiled(x):
        batch, height, width, channels = x.shape
        value = x.view(batch, height * width, 2, channels // 2)
        positions = torch.zeros(batch, height * width, 2, 1, 2, 2) + 0.5
        weights = torch.ones(batch, height * width, 2, 1, 2)
        return deformable_attention(value, [(height, width)], positions, weights)

    for size in ((2, 4, 5), (3, 7, 6), (4, 5, 9), (2, 8, 8)):
        compiled(torch.randn(*size, 8))
    assert len(graphs) == 1


@over_fast
@over_forms
def test_export_is_one_node(fused, backend):
    tensors, settings = make(SMALL, fused, torch.float32)
    names = list(tensors)

    class Op(nn.Module):
        def forward(self, *args):
            call = dict(zip(names, args, strict=True))
            return FUNCTIONS[fused](**call, **settings, backend=backend)

    args = tuple(x.detach() for x in tensors.values())
    program = torch.export.export(Op(), args)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    name = FUNCTIONS[fused].__name__
    assert [t for t in targets if "mmlocal" in t] == [f"mmlocal.{name}.default"]
    assert torch.equal(program.module()(*args), Op()(*args))


@over_fast
@over_forms
def test_vmap(fused, backend):
    """The samples of vmap are one larger batch."""
    tensors, settings = make((3, 4, 2, 3, 2, (3, 4), (2, 2)), fused)
    names, args = list(tensors), [x.detach() for x in tensors.values()]

    def op(*args):
        call = dict(zip(names, args, strict=True))
        return FUNCTIONS[fused](**call, **settings, backend=backend)

    def one(*args):
        return op(*(x[None] for x in args))[0]

    assert torch.equal(vmap(one)(*args), op(*args))
    mixed = vmap(one, in_dims=(0, *[None] * (len(args) - 1)))(args[0], *(x[1] for x in args[1:]))
    assert torch.equal(mixed[2], one(args[0][2], *(x[1] for x in args[1:])))
    every = tuple(range(len(args)))
    ours = vmap(grad(lambda *x: one(*x).square().sum(), every))(*args)
    expected = grad(lambda *x: op(*x).square().sum(), every)(*args)
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_vmap_with_reference_points_that_the_batch_shares():
    tensors, settings = make((2, 4, 2, 3, 2, (3, 4), (2, 2)), True)
    value, points, *others = (x.detach() for x in tensors.values())
    shapes = settings["spatial_shapes"]

    def op(value, points):
        return deformable_attention_from_offsets(value, shapes, points, *others)

    several = torch.stack((value, value + 1, value - 1))
    out = vmap(op, in_dims=(0, None))(several, points[:1])
    assert torch.equal(out, torch.stack([op(x, points[:1]) for x in several]))


@over_backends
@over_forms
def test_flops(fused, backend):
    """Nine for each sample and channel: seven to interpolate, two to weight and add."""
    tensors, settings = make((2, 5, 3, 4, 2, (4, 3), (2, 2)), fused, torch.float32)
    expected = 9 * 2 * 5 * 3 * 2 * 2 * 4
    formula = FLOPS[f"mmlocal::{FUNCTIONS[fused].__name__}"]
    assert formula(*(x.shape for x in tensors.values()), [4, 3, 2, 2], "zeros") == expected
    with FlopCounterMode(display=False) as counter:
        FUNCTIONS[fused](**tensors, **settings, backend=backend)
    assert counter.get_total_flops() in (0, expected)


def test_flops_of_itsa():
    """The samples of one step at 107x140 with four tasks: 29 of its 240 GFLOP."""
    case = next(c for c in CASES["tasks"] if "107x140" in c.name)
    inputs = make_inputs(case, lambda *shape: torch.empty(shape, device="meta"))
    flops = FLOPS["mmlocal::deformable_attention"](*(x.shape for x in inputs.values()))
    assert flops == 9 * 59920 * 192 * 280
    assert sum(h * w for h, w in spatial_shapes(case)) == 78820


@over_fast
@over_forms
def test_memory_has_no_samples(fused, backend):
    """What queries cost beside inputs and outputs, over the size of their samples."""
    extra = {}
    for queries in (64, 1088):
        tensors, settings = make((1, queries, 4, 70, 16, (12, 16), (6, 8)), fused, torch.float32)
        size = sum(x.numel() for x in tensors.values()) * 4
        op = functools.partial(FUNCTIONS[fused], **tensors, **settings, backend=backend)
        out = op()
        backward = functools.partial(
            torch.autograd.grad, out, list(tensors.values()), out, retain_graph=True
        )
        extra[queries] = (peak_memory(op) - out.numel() * 4, peak_memory(backward) - size)
    samples = 1024 * 2 * 16 * 280 * 4
    cost = [(b - a) / samples for a, b in zip(extra[64], extra[1088], strict=True)]
    print(f"memory of {backend}: forward, backward = {cost} of the samples")
    assert max(cost) < 1 / 20


def _bad(fused=False, **changes):
    tensors = {"value": torch.zeros(2, 14, 3, 4)}
    samples = (2, 5, 3, 2, 4)
    if fused:
        tensors["reference_points"] = torch.zeros(2, 5, 2, 2)
        tensors["sampling_offsets"] = torch.zeros(*samples, 2)
        tensors["attention_logits"] = torch.zeros(samples)
    else:
        tensors["sampling_locations"] = torch.zeros(*samples, 2)
        tensors["attention_weights"] = torch.zeros(samples)
    return tensors | {"spatial_shapes": [(3, 4), (1, 2)]} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"value": torch.zeros(2, 13, 3, 4)}, ValueError, "the 14 pixels of spatial_.* got 13 row"),
        ({"value": torch.zeros(2, 14, 12)}, ValueError, r"value must have the 4 .* \(2, 14, 12\)"),
        ({"value": torch.zeros(2, 14, 3, 0)}, ValueError, "at least one head and one channel"),
        ({"value": torch.zeros(2, 14, 3, 4).int()}, TypeError, "value must be floating .*int32"),
        ({"value": torch.zeros(1, 14, 3, 4)}, ValueError, r"attention_weights .* = \(1, Q, 3, 2, "),
        ({"value": torch.zeros(2, 14, 2, 6)}, ValueError, r"attention_weights .* = \(2, Q, 2, 2, "),
        (
            {"spatial_shapes": [(3, 4), (1, 1), (1, 1)]},
            ValueError,
            r"= \(2, Q, 3, 3, .* got \(2, 5",
        ),
        ({"spatial_shapes": [(3, 4), (0, 2)]}, ValueError, "spatial_shapes must be at least 1 pix"),
        ({"spatial_shapes": [(3, 4), (2, -1)]}, ValueError, "spatial_shapes must be at least 1 pi"),
        ({"spatial_shapes": []}, ValueError, r"must be pairs of ints .* got \[\]"),
        (
            {"spatial_shapes": [(3, 4, 1)]},
            ValueError,
            r"must be pairs of ints .* got \[\(3, 4, 1\)",
        ),
        ({"spatial_shapes": [3, 4]}, TypeError, r"must be pairs of ints .* got \[3, 4\]"),
        (
            {"spatial_shapes": [(3.0, 4), (1, 2)]},
            TypeError,
            r"must be pairs of ints .* got \[\(3.0",
        ),
        ({"spatial_shapes": torch.ones(2, 2)}, TypeError, "got a tensor of torch.float32"),
        ({"spatial_shapes": torch.ones(2).long()}, ValueError, r"got a tensor of shape \(2,\)"),
        ({"sampling_locations": torch.zeros(2, 5, 3, 2, 4)}, ValueError, "sampling_locations must"),
        ({"sampling_locations": torch.zeros(2, 5, 3, 2, 3, 2)}, ValueError, r"got \(2, 5, 3, 2, 3"),
        ({"sampling_locations": None}, TypeError, "sampling_locations must be a tensor, got None"),
        ({"attention_weights": torch.zeros(2, 5, 3, 2, 0)}, ValueError, "at least one point, got"),
        ({"attention_weights": torch.zeros(2, 5, 24)}, ValueError, r"points\) for a value .* got"),
        (
            {"attention_weights": torch.zeros(2, 5, 3, 2, 4, device="meta")},
            ValueError,
            r"attention_weights must be on the device of value \(cpu\), got meta",
        ),
        ({"padding_mode": "clamp"}, ValueError, "must be 'zeros' or 'border', got 'clamp'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*eager, reference, got 'cuda'"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_bad_input(changes, error, message):
    deformable_attention(**_bad())
    with pytest.raises(error, match=message):
        deformable_attention(**_bad(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_points": torch.zeros(3, 5, 2, 2)}, r"\(2 or 1, 5, 2 or 1, 2\), got \(3, 5"),
        ({"reference_points": torch.zeros(2, 1, 2, 2)}, r"\(2 or 1, 5, 2 or 1, 2\), got \(2, 1"),
        ({"reference_points": torch.zeros(2, 5, 3, 2)}, r"\(2 or 1, 5, 2 or 1, 2\), got \(2, 5, 3"),
        ({"reference_points": torch.zeros(2, 5, 2, 4)}, r"\(2 or 1, 5, .* got \(2, 5, 2, 4\)"),
        ({"reference_points": torch.zeros(2, 5, 2)}, r"reference_points must .* got \(2, 5, 2\)"),
        ({"sampling_offsets": torch.zeros(2, 5, 3, 2, 5, 2)}, "sampling_offsets must have the sha"),
        ({"attention_logits": torch.zeros(2, 5, 2, 2, 4)}, r"attention_logits must .* = \(2, Q, 3"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_bad_input_of_the_fused_form(changes, message):
    deformable_attention_from_offsets(**_bad(True))
    with pytest.raises(ValueError, match=message):
        deformable_attention_from_offsets(**_bad(True, **changes))

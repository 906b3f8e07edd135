"""The grouped convolution: its definition, its backends, and how it meets PyTorch.

Random calls of it are in test_random_problems.py.
"""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
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
from cases import make_convolution as make
from cases import run as run_op
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from mmlocal.ops import grouped_conv2d
from mmlocal.ops.convolution import BACKENDS as ALL_BACKENDS
from mmlocal.ops.convolution.analysis import FLOPS

BACKENDS = running(ALL_BACKENDS)
NAMES = [b.name for b in BACKENDS]
FAST = [b.name for b in BACKENDS if b.name != "reference"]
backends = pytest.mark.parametrize("backend", NAMES)
fast_backends = pytest.mark.parametrize("backend", FAST)
SHAPES = [
    # batch, groups, height, width, kernel, padding, dilation
    (1, 1, 1, 1, 1, 0, 1),
    (1, 2, 1, 1, 7, 3, 1),
    (2, 3, 1, 5, 3, 2, 2),
    (2, 1, 3, 1, 3, 1, 1),  # one column
    (1, 3, 2, 6, 7, 3, 1),  # height below the kernel
    (2, 1, 9, 4, 5, 2, 1),  # width below the kernel
    (1, 4, 7, 7, 7, 3, 1),  # equal
    (1, 3, 8, 6, 7, 3, 1),  # one above, one below
    (1, 2, 13, 10, 5, 4, 2),
    (2, 2, 20, 9, 4, 1, 1),  # an even kernel
    (1, 2, 11, 12, 2, 0, 3),  # no padding
    (1, 2, 5, 6, 3, 4, 1),  # windows that are all outside
    (1, 5, 37, 31, 9, 4, 1),  # several tasks, and a part of a vector
    (2, 16, 18, 15, 8, 3, 1),
    (1, 2, 6, 5, 1, 0, 40),  # a dilation that does nothing
    (0, 3, 5, 6, 3, 1, 1),  # empty batch
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)

run = functools.partial(run_op, grouped_conv2d)


def naive(x, weight, bias, *, padding, dilation, groups):
    """The equation of the docstring, one number at a time."""
    batch, channels, height, width = x.shape
    k = weight.shape[2]
    rows, columns = (side + 2 * padding - dilation * (k - 1) for side in (height, width))
    out = bias[:, None, None].expand(batch, channels, rows, columns).clone()
    sides = map(range, (batch, channels, k, k, rows, columns))
    for b, c, i, j, y, z in itertools.product(*sides):
        yy, zz = y + i * dilation - padding, z + j * dilation - padding
        if 0 <= yy < height and 0 <= zz < width:
            first = 4 * (c // 4)
            out[b, c, y, z] += weight[c, :, i, j] @ x[b, first : first + 4, yy, zz]
    return out


@backends
@pytest.mark.parametrize(
    "shape", [(2, 2, 4, 3, 3, 1, 1), (1, 1, 2, 4, 5, 4, 1), (1, 2, 4, 5, 2, 1, 3)], ids=str
)
def test_equation(shape, backend):
    tensors, settings = make(shape)
    with torch.no_grad():
        out = grouped_conv2d(**tensors, **settings, backend=backend)
        torch.testing.assert_close(out, naive(**tensors, **settings), rtol=0, atol=1e-13)


@backends
@shapes
def test_it_is_that_of_pytorch(shape, backend):
    """Also in the shape of the output."""
    tensors, settings = make(shape)
    expected = F.conv2d(*tensors.values(), **settings)
    torch.testing.assert_close(grouped_conv2d(**tensors, **settings, backend=backend), expected)


@backends
def test_gradcheck(backend):
    for shape in [(2, 2, 3, 4, 3, 1, 1), (1, 1, 4, 3, 3, 2, 2), (1, 1, 2, 3, 5, 2, 1)]:
        tensors, settings = make(shape)
        op = functools.partial(grouped_conv2d, **settings, backend=backend)
        assert gradcheck(op, tuple(tensors.values()), raise_exception=True)


def test_second_derivatives_of_reference():
    tensors, settings = make((1, 1, 2, 3, 3, 1, 1))
    op = functools.partial(grouped_conv2d, **settings, backend="reference")
    assert gradgradcheck(op, tuple(tensors.values()))


@fast_backends
def test_second_derivatives_are_refused_elsewhere(backend):
    tensors, settings = make((1, 1, 3, 3, 3, 1, 1))
    out = grouped_conv2d(**tensors, **settings, backend=backend)
    (first,) = torch.autograd.grad(out.square().sum(), tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@shapes
@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
def test_backend_holds_its_tolerance(backend, shape, dtype):
    """Against the definition in float64 on the same (rounded) numbers."""
    for bias in (True, False):
        tensors, settings = make(shape, bias, dtype)
        expected = run(leaves(tensors, torch.float64), settings, backend="reference")
        ours = run(tensors, settings, backend=backend.name)
        assert all(x.dtype == dtype for x in ours.values())
        assert worst_error(ours, expected) <= backend.atol[dtype], bias


@backends
@pytest.mark.parametrize("layout", ["channels-last", "sliced", "transposed", "expanded"])
def test_memory_layouts(layout, backend):
    tensors, settings = make((2, 3, 6, 5, 3, 1, 1))
    for names in (["x"], ["weight"], ["x", "weight"]):
        changed = {n: restride(x, layout) if n in names else x for n, x in tensors.items()}
        changed = {n: x.detach().requires_grad_() for n, x in changed.items()}
        plain = {n: x.detach().contiguous().requires_grad_() for n, x in changed.items()}
        expected = run(plain, settings, backend="reference")
        ours = run(changed, settings, backend=backend)
        assert worst_error(ours, expected) < 1e-13
        last = "x" in names and layout == "channels-last"
        for name in ("out", "grad of x") if backend != "reference" else ():
            assert ours[name].is_contiguous(
                memory_format=torch.channels_last if last else torch.contiguous_format
            )


@backends
def test_autocast_is_that_of_convolutions(backend):
    tensors, settings = make((2, 3, 6, 5, 3, 1, 1), dtype=torch.float32)
    lower = {name: x.detach().bfloat16() for name, x in tensors.items()}
    expected = grouped_conv2d(**lower, **settings, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(tensors, settings, backend=backend)
    assert torch.equal(ours["out"], expected)
    assert all(x.dtype == torch.float32 for n, x in ours.items() if n != "out")


@backends
def test_any_tensor_may_be_frozen(backend):
    tensors, settings = make((2, 3, 5, 4, 3, 1, 1))
    full = run(tensors, settings, backend=backend)
    for count in (1, 2):
        for names in itertools.combinations(tensors, count):
            part = {n: x.detach().requires_grad_(n in names) for n, x in tensors.items()}
            ours = run(part, settings, backend=backend)
            assert ours.keys() == {"out", *(f"grad of {name}" for name in names)}
            for name, x in ours.items():
                torch.testing.assert_close(x, full[name], rtol=0, atol=1e-13)
    with torch.no_grad():
        assert not grouped_conv2d(**tensors, **settings, backend=backend).requires_grad


@backends
@pytest.mark.parametrize("number", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_spoiled_weight_is_not_read_outside_the_map(number, layout, dtype, backend):
    """Libraries of PyTorch differ in this, and so would the backends."""
    x = torch.ones(1, 8, 5, 6, dtype=dtype)
    x = (restride(x, layout) if layout == "channels-last" else x).requires_grad_()
    weight = torch.ones(8, 4, 3, 3, dtype=dtype)
    weight[0, 1, 0, 0] = number
    settings = dict(padding=1, groups=2, backend=backend)
    out = grouped_conv2d(x, weight, **settings)
    spoiled = torch.zeros(1, 8, 5, 6, dtype=torch.bool)
    spoiled[0, 0, 1:, 1:] = True
    assert torch.equal(~out.isfinite(), spoiled)
    (back,) = torch.autograd.grad(out, x, torch.ones_like(out))
    spoiled = torch.zeros(1, 8, 5, 6, dtype=torch.bool)
    spoiled[0, 1, :-1, :-1] = True
    assert torch.equal(~back.isfinite(), spoiled)


@backends
@pytest.mark.parametrize("number", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_spoiled_gradient_stays_in_its_window(number, dtype, backend):
    tensors, settings = make((1, 2, 5, 6, 3, 1, 1), dtype=dtype)
    out = grouped_conv2d(**tensors, **settings, backend=backend)
    cotangent = torch.ones_like(out)
    cotangent[0, 5, 0, 0] = number
    back, slopes, _ = torch.autograd.grad(out, list(tensors.values()), cotangent)
    spoiled = torch.zeros(1, 8, 5, 6, dtype=torch.bool)
    spoiled[0, 4:, :2, :2] = True
    assert torch.equal(~back.isfinite(), spoiled)
    spoiled = torch.zeros(8, 4, 3, 3, dtype=torch.bool)
    spoiled[5, :, 1:, 1:] = True
    assert torch.equal(~slopes.isfinite(), spoiled)


@backends
@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (0, 0, 0)], ids=str)
def test_vmap_and_func_grad(in_dims, backend):
    _, settings = make((2, 2, 4, 5, 3, 1, 1))
    g = torch.Generator().manual_seed(0)
    sizes = ((2, 8, 4, 5), (8, 4, 3, 3), (8,))
    args = [
        torch.randn(*([3] if d == 0 else []), *size, generator=g, dtype=torch.float64)
        for d, size in zip(in_dims, sizes, strict=True)
    ]

    def loss(*args):
        out = grouped_conv2d(*args, **settings, backend=backend)
        return (out * make_cotangent(out)).sum()

    slopes = grad(loss, argnums=(0, 1, 2))
    ours = vmap(slopes, in_dims)(*args)
    for i in range(3):
        one = [x if d is None else x[i] for x, d in zip(args, in_dims, strict=True)]
        for x, expected in zip(ours, slopes(*one), strict=True):
            torch.testing.assert_close(x[i], expected)


@fast_backends
def test_opcheck(backend):
    """Schema, fake tensors (shapes *and* strides), autograd registration, AOT autograd."""
    for shape, bias, layout in [
        ((2, 3, 6, 5, 3, 1, 1), True, torch.channels_last),
        ((1, 2, 5, 4, 3, 2, 2), False, torch.contiguous_format),
    ]:
        tensors, settings = make(shape, bias, torch.float32)
        x = tensors["x"].detach().contiguous(memory_format=layout)
        weight, offset = tensors["weight"].detach(), tensors.get("bias")
        offset = offset if offset is None else offset.detach()
        live = [t if t is None else t.clone().requires_grad_() for t in (x, weight, offset)]
        torch.library.opcheck(
            torch.ops.mmlocal.grouped_conv2d, (*live, *settings.values(), backend)
        )
        out = grouped_conv2d(x, weight, offset, **settings)
        for needed in ([True, True, bias], [True, False, False], [False, True, False]):
            torch.library.opcheck(
                torch.ops.mmlocal.grouped_conv2d_backward,
                (torch.randn_like(out), x, weight, offset, *settings.values(), backend, needed),
                **BACKWARD_CHECKS,
            )


@fast_backends
@pytest.mark.parametrize(
    ("compiler", "dynamic"),
    [("inductor", False), ("aot_eager", True)],
    ids=["inductor", "aot-dynamic"],
)
def test_compile(compiler, dynamic, backend):
    torch.compiler.reset()

    @functools.partial(torch.compile, fullgraph=True, backend=compiler, dynamic=dynamic)
    def compiled(**tensors):
        return grouped_conv2d(**tensors, padding=1, dilation=1, groups=3, backend=backend)

    for shape in [(2, 3, 6, 5, 3, 1, 1), (2, 3, 9, 7, 3, 1, 1)]:
        tensors, settings = make(shape, dtype=torch.float32)
        expected = run(tensors, settings, backend=backend)
        assert worst_error(run_op(compiled, tensors, {}), expected) < 1e-5


class Op(nn.Module):
    def __init__(self, backend=None):
        super().__init__()
        self.backend = backend

    def forward(self, x, weight, bias):
        return grouped_conv2d(x, weight, bias, padding=1, groups=2, backend=self.backend)


@fast_backends
def test_export_is_one_node(backend):
    tensors, _ = make((2, 2, 6, 5, 3, 1, 1), dtype=torch.float32)
    args, op = tuple(x.detach() for x in tensors.values()), Op(backend)
    program = torch.export.export(op, args)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets == ["mmlocal.grouped_conv2d.default"]
    assert torch.equal(program.module()(*args), op(*args))


def test_onnx_has_its_convolution():
    pytest.importorskip("onnxscript")
    tensors, _ = make((2, 2, 6, 5, 3, 1, 1), dtype=torch.float32)
    args = tuple(x.detach() for x in tensors.values())
    program = torch.onnx.export(Op(), args, dynamo=True, verbose=False)
    assert [node.op_type for node in program.model.graph] == ["Conv"]


@backends
def test_flops(backend):
    """As many as PyTorch counts."""
    tensors, settings = make((2, 3, 7, 6, 5, 1, 1), dtype=torch.float32)
    assert set(FLOPS) == {"mmlocal::grouped_conv2d"}
    shapes = [x.shape for x in tensors.values()]
    with FlopCounterMode(display=False) as counter:
        out = F.conv2d(*tensors.values(), **settings)
    expected = counter.get_total_flops()
    flops = FLOPS["mmlocal::grouped_conv2d"](*shapes, *settings.values(), out_shape=out.shape)
    assert flops == expected == 2 * 2 * 12 * 5 * 4 * 4 * 25
    with FlopCounterMode(display=False) as counter:
        grouped_conv2d(**tensors, **settings, backend=backend)
    assert counter.get_total_flops() in (0, expected)


@fast_backends
def test_no_window_is_stored(backend):
    """Beside inputs and outputs, both passes hold no more than a few maps of the input's size."""
    # With AVX-512, a vector has a number of each of 16 groups. Fewer groups leave a part empty.
    tensors, settings = make((1, 16, 48, 48, 9, 4, 1), dtype=torch.float32)
    tensors = {name: restride(x, "channels-last").requires_grad_() for name, x in tensors.items()}
    size = tensors["x"].numel() * 4
    outs = []

    def forward():
        outs.append(grouped_conv2d(**tensors, **settings, backend=backend))

    peak = peak_memory(forward)
    cotangent = torch.ones_like(outs[0])
    back = peak_memory(lambda: torch.autograd.grad(outs[0], list(tensors.values()), cotangent))
    print(f"{backend}: forward {peak / size:.1f} maps, backward {back / size:.1f} maps")
    assert peak < 4 * size
    assert back < 8 * size  # the windows are 81


@backends
def test_threads_and_runs_give_the_same_bits(backend):
    chosen = next(b for b in BACKENDS if b.name == backend)
    tensors, settings = make((2, 6, 37, 23, 7, 3, 1), dtype=torch.float32)
    first = run(tensors, settings, backend=backend)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if chosen.any_threads else threads)
        again = run(tensors, settings, backend=backend)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, again[name]) for name, x in first.items())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"groups": 3}, ValueError, "x must have groups of 4 channels, got 8 channels in 3 groups"),
        ({"groups": 8}, ValueError, "got 8 channels in 8 groups; torch.nn.functional.conv2d takes"),
        ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ({"groups": 2.0}, TypeError, "groups must be an int, got 2.0"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": 2**31}, ValueError, r"padding must be below 2\*\*31, got 2147483648"),
        ({"dilation": 2**31}, ValueError, r"dilation must be below 2\*\*31, got 2147483648"),
        ({"padding": (1, 1)}, TypeError, "padding must be an int"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        (
            {"dilation": 3},
            ValueError,
            "x must be at least one window of 7 pixels with padding=1, got a map of 5x4",
        ),
        ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
        ({"x": torch.zeros(8, 5, 4)}, ValueError, r"x must have .* got \(8, 5, 4\)"),
        ({"x": torch.zeros(2, 8, 0, 4)}, ValueError, r"x must .* one pixel, got \(2, 8, 0"),
        ({"x": torch.zeros(2, 8, 5, 4).int()}, TypeError, "x must be floating point"),
        (
            {"x": torch.zeros(2, 8, 5, 4).half()},
            TypeError,
            r"weight must have the dtype of x \(torch.float16\), got torch.float32",
        ),
        ({"weight": torch.zeros(8, 4, 9)}, ValueError, r"weight must have .* got \(8, 4, 9\)"),
        ({"weight": torch.zeros(8, 4, 0, 0)}, ValueError, r"weight must have .* got \(8, 4, 0, 0"),
        (
            {"weight": torch.zeros(8, 4, 3, 5)},
            ValueError,
            r"weight must .* = \(8, 4, 5, 5\), got \(8, 4, 3, 5\)",
        ),
        (
            {"weight": torch.zeros(16, 4, 3, 3)},
            ValueError,
            r"weight must .* = \(8, 4, 3, 3\), got \(16, 4, 3, 3\)",
        ),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must .* = \(8,\), got \(4,\)"),
        ({"bias": torch.zeros(8).double()}, TypeError, "bias must have the dtype of x"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*reference, got 'cuda'"),
        ({"backend": "triton"}, ValueError, "backend must be one of cpp, eager, reference, got"),
    ],
    ids=str,
)
def test_bad_input(changes, error, message):
    good = dict(
        x=torch.zeros(2, 8, 5, 4),
        weight=torch.zeros(8, 4, 3, 3),
        bias=torch.zeros(8),
        padding=1,
        groups=2,
    )
    grouped_conv2d(**good)
    with pytest.raises(error, match=message):
        grouped_conv2d(**good | changes)

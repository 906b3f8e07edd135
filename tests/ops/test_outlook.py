"""The outlook op: its definition, its backends against the definition, and how it meets PyTorch."""

import functools
import itertools

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
from cases import make_outlook as make
from cases import run as run_op
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

from mmlocal.ops import eager_common, outlook_attention
from mmlocal.ops.outlook import BACKENDS as ALL_BACKENDS
from mmlocal.ops.outlook import output_size
from mmlocal.ops.outlook.analysis import FLOPS

run = functools.partial(run_op, outlook_attention)
BACKENDS = running(ALL_BACKENDS)
NAMES = [b.name for b in BACKENDS]
FAST = [b.name for b in BACKENDS if b.name != "reference"]
over_backends = pytest.mark.parametrize("backend", NAMES)
over_softmax = pytest.mark.parametrize("softmax", [True, False], ids=["logits", "weights"])
SHAPES = [
    # batch, heads, channels per head, height, width, kernel, stride, padding
    (1, 1, 1, 1, 1, 1, 1, 0),
    (1, 2, 3, 1, 1, 3, 2, 1),
    (2, 1, 2, 1, 5, 3, 2, 1),
    (2, 3, 1, 6, 1, 3, 2, 1),  # one column
    (2, 3, 2, 7, 9, 3, 2, 1),  # odd, as in VOLO
    (1, 2, 4, 8, 6, 3, 2, 1),  # even: windows beyond the bottom and the right
    (1, 6, 32, 5, 4, 3, 2, 1),  # heads of VOLO
    (2, 1, 3, 6, 5, 3, 1, 1),  # a window for each pixel
    (1, 3, 2, 3, 3, 3, 1, 0),  # one window
    (1, 2, 5, 9, 7, 5, 2, 2),
    (1, 1, 2, 2, 3, 5, 2, 2),  # map below the kernel
    (1, 2, 3, 7, 8, 4, 3, 2),  # even kernel
    (2, 2, 2, 7, 8, 2, 3, 0),  # pixels in no window
    (1, 2, 2, 4, 5, 3, 1, 2),  # windows that hold one pixel
    (0, 2, 2, 5, 6, 3, 2, 1),  # empty batch
]


def shape_id(shape: tuple) -> str:
    b, n, c, h, w, k, s, p = shape
    return f"B{b}-heads{n}-C{n * c}-{h}x{w}-k{k}-s{s}-p{p}"


def naive(value, attn, *, num_heads, kernel_size, stride, padding, softmax=True):
    """The equation of the docstring, one window, target and source at a time."""
    batch, _, height, width = value.shape
    k, taps = kernel_size, kernel_size**2
    maps = attn.unflatten(1, (num_heads, taps, taps))
    out = torch.zeros_like(value).unflatten(1, (num_heads, -1))
    value = value.unflatten(1, (num_heads, -1))
    for b, head, i, j in itertools.product(*map(range, (batch, num_heads, *attn.shape[2:]))):
        pixels = {}
        for tap in range(taps):
            y, x = i * stride + tap // k - padding, j * stride + tap % k - padding
            if 0 <= y < height and 0 <= x < width:
                pixels[tap] = (b, head, slice(None), y, x)
        for t, target in pixels.items():
            weights = maps[b, head, t, :, i, j]
            if softmax:
                weights = weights.exp() / weights.exp().sum()
            for s, source in pixels.items():
                out[target] += weights[s] * value[source]
    return out.flatten(1, 2)


@over_backends
@over_softmax
@pytest.mark.parametrize(
    "shape",
    [(2, 2, 2, 5, 4, 3, 2, 1), (1, 2, 1, 4, 5, 3, 1, 1), (1, 1, 2, 5, 6, 2, 3, 1)],
    ids=shape_id,
)
def test_equation(shape, softmax, backend):
    tensors, settings = make(shape)
    settings |= dict(softmax=softmax)
    with torch.no_grad():
        out = outlook_attention(**tensors, **settings, backend=backend)
        torch.testing.assert_close(out, naive(**tensors, **settings), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(7, 3, 2, 1), (8, 3, 2, 1), (1, 3, 2, 1), (9, 5, 2, 2), (6, 3, 1, 1), (11, 4, 3, 0)],
)
def test_output_size_is_that_of_unfold(size, kernel, stride, padding):
    x = torch.zeros(1, 1, size, 3 * size)
    count = nn.functional.unfold(x, kernel, padding=padding, stride=stride).shape[2]
    sides = [output_size(n, kernel, stride, padding) for n in (size, 3 * size)]
    assert sides[0] * sides[1] == count


@over_backends
@over_softmax
def test_gradcheck(softmax, backend):
    for shape in [(1, 1, 2, 2, 3, 3, 2, 1), (2, 2, 1, 2, 2, 2, 1, 1), (1, 1, 1, 6, 5, 2, 3, 0)]:
        tensors, settings = make(shape)
        op = functools.partial(outlook_attention, **settings, softmax=softmax, backend=backend)
        assert gradcheck(op, tuple(tensors.values()))


def test_second_derivatives_of_reference():
    tensors, settings = make((1, 2, 1, 3, 2, 2, 2, 1))
    op = functools.partial(outlook_attention, **settings, backend="reference")
    assert gradgradcheck(op, tuple(tensors.values()))


@pytest.mark.parametrize("backend", FAST)
def test_second_derivatives_are_refused_elsewhere(backend):
    """Never a wrong number in silence."""
    tensors, settings = make((1, 1, 2, 3, 3, 3, 2, 1))
    out = outlook_attention(**tensors, **settings, backend=backend)
    (grad,) = torch.autograd.grad(out.square().sum(), tensors["value"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"outlook_attention: .* has no second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
def test_backend_holds_its_tolerance(backend, shape, dtype):
    """Against the definition in float64 on the same (rounded) numbers."""
    for softmax in (True, False):
        tensors, settings = make(shape, dtype)
        exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
        expected = run(exact, settings, softmax=softmax, backend="reference")
        ours = run(tensors, settings, softmax=softmax, backend=backend.name)
        assert all(x.dtype == dtype for x in ours.values())
        assert worst_error(ours, expected) <= backend.atol[dtype], f"softmax={softmax}"


def test_eager_works_sample_by_sample(monkeypatch):
    """A large batch on a CPU goes in chunks."""
    tensors, settings = make((5, 2, 3, 6, 7, 3, 2, 1))
    expected = run(tensors, settings, backend="reference")
    for samples in (1, 2, 5):
        monkeypatch.setattr(eager_common, "CPU_CHUNK", samples * tensors["value"][0].numel())
        assert worst_error(run(tensors, settings, backend="eager"), expected) < 5e-15


@over_backends
@pytest.mark.parametrize("layout", ["channels-last", "sliced", "transposed", "expanded"])
def test_memory_layouts(layout, backend):
    tensors, settings = make((2, 3, 2, 6, 5, 3, 2, 1))
    changed = {n: restride(x, layout).requires_grad_() for n, x in tensors.items()}
    assert not changed["value"].is_contiguous()
    plain = {n: x.detach().contiguous().requires_grad_() for n, x in changed.items()}
    expected = run(plain, settings, backend="reference")
    assert worst_error(run(changed, settings, backend=backend), expected) < 1e-13


@over_backends
def test_mixed_dtypes(backend):
    """As in mixed precision with a softmax outside: values in bfloat16, weights in float32."""
    tensors, settings = make((2, 3, 2, 6, 5, 3, 2, 1), torch.float32)
    mixed = leaves(tensors | {"value": tensors["value"].bfloat16()})
    exact = leaves(mixed, torch.float64)
    ours = run(mixed, settings, backend=backend)
    dtypes = [ours[name].dtype for name in ("out", "grad of value", "grad of attn")]
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert worst_error(ours, run(exact, settings, backend="reference")) < 8e-3


@over_backends
def test_autocast_does_not_touch_the_op(backend):
    """It accumulates in float32 whatever surrounds it, and returns the dtype of ``value``."""
    tensors, settings = make((2, 3, 2, 6, 5, 3, 2, 1), torch.float32)
    expected = run(tensors, settings, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(tensors, settings, backend=backend)
    assert all(torch.equal(ours[name], x) for name, x in expected.items())


@over_backends
def test_one_input_may_be_frozen(backend):
    tensors, settings = make((2, 3, 2, 5, 4, 3, 2, 1))
    full = run(tensors, settings, backend=backend)
    for live in tensors:
        part = {n: x.detach().requires_grad_(n == live) for n, x in tensors.items()}
        grads = run(part, settings, backend=backend)
        assert set(grads) == {"out", f"grad of {live}"}
        assert worst_error(grads, {name: full[name] for name in grads}) < 1e-13
    with torch.no_grad():
        assert not outlook_attention(**tensors, **settings, backend=backend).requires_grad


@over_backends
def test_inputs_are_left_alone(backend):
    tensors, settings = make((2, 2, 16, 5, 4, 3, 2, 1))
    tensors = {n: restride(x, "channels-last").requires_grad_() for n, x in tensors.items()}
    before = {n: x.detach().clone() for n, x in tensors.items()}
    result = run(tensors, settings, backend=backend)
    assert all(torch.equal(x, before[n]) for n, x in tensors.items())
    assert all(
        x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
        for x, y in itertools.product(result.values(), tensors.values())
    )


@over_backends
def test_large_logits_do_not_overflow(backend):
    tensors, settings = make((1, 2, 2, 5, 4, 3, 2, 1), torch.float16)
    tensors["attn"] = (tensors["attn"].detach() * 1e4).requires_grad_()
    assert all(x.isfinite().all() for x in run(tensors, settings, backend=backend).values())


@over_backends
def test_a_spoiled_logit_stays_in_its_row(backend):
    """One logit of a map of 7x7: the pixel that its row mixes, in the channels of its head."""
    value, attn = torch.ones(1, 4, 7, 7), torch.zeros(1, 2 * 81, 4, 4)
    attn[0, 9 * 5 + 2, 1, 3] = torch.nan  # target (1, 2) of a window at (1, 5), in head 0
    out = outlook_attention(value, attn, num_heads=2, backend=backend)
    assert out[0, 2:].isfinite().all()
    assert not out[0, :2].isnan().any()  # column 7 lies outside the map
    attn[0, 9 * 4 + 2, 1, 3] = torch.nan  # target (1, 1)
    out = outlook_attention(value, attn, num_heads=2, backend=backend)
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[2, 6] = True
    assert out[0, 2:].isfinite().all()
    assert torch.equal(out[0, :2].isnan(), expected.expand(2, 7, 7))


@over_backends
def test_the_fold_adds_up(backend):
    """Rows sum to 1, so inside the map a pixel becomes the number of its windows."""
    value, attn = torch.ones(1, 2, 9, 9), torch.randn(1, 2 * 81, 5, 5)
    out = outlook_attention(value, attn, num_heads=2, backend=backend)
    side = torch.tensor([1.0, 2, 1, 2, 1, 2, 1, 2, 1])
    inner = (..., slice(2, 7), slice(2, 7))
    torch.testing.assert_close(out[inner], (side[:, None] * side).expand(1, 2, 9, 9)[inner])
    assert (out[..., 0, 0] < 1).all()  # its window has sources outside the map


@over_backends
def test_stride_far_beyond_the_map(backend):
    tensors, settings = make((1, 2, 2, 5, 6, 3, 2**62, 1))
    assert tensors["attn"].shape[2:] == (1, 1)
    expected = run(tensors, settings | dict(stride=7), backend="reference")
    assert worst_error(run(tensors, settings, backend=backend), expected) < 5e-15


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.deterministic], ids=lambda b: b.name)
def test_two_runs_are_bit_equal(backend):
    tensors, settings = make((2, 3, 4, 17, 23, 3, 2, 1), torch.float32)
    first = run(tensors, settings, backend=backend.name)
    torch.use_deterministic_algorithms(True)
    try:
        second = run(tensors, settings, backend=backend.name)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, second[n]) for n, x in first.items())


@pytest.mark.parametrize("backend", FAST)
def test_opcheck(backend):
    """Schema, fake tensors (shapes *and* strides), autograd registration, AOT autograd."""
    for shape, layout in [
        ((2, 3, 2, 6, 5, 3, 2, 1), torch.channels_last),
        ((1, 1, 2, 5, 4, 2, 1, 1), torch.contiguous_format),
    ]:
        tensors, settings = make(shape, torch.float32)
        maps = [x.detach().contiguous(memory_format=layout) for x in tensors.values()]
        args = (*settings.values(), True, backend)
        inputs = [x.clone().requires_grad_() for x in maps]
        torch.library.opcheck(torch.ops.mmlocal.outlook_attention, (*inputs, *args))
        # AOT autograd only compares values, so hold the strides of the backward op on its own.
        backward = torch.ops.mmlocal.outlook_attention_backward
        for needed in ([True, True], [True, False], [False, True]):
            args_of_backward = (maps[0].clone(), *maps, *args, needed)
            torch.library.opcheck(backward, args_of_backward, **BACKWARD_CHECKS)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("compiler", "dynamic"),
    [("inductor", False), ("aot_eager", False), ("aot_eager", True)],
    ids=["inductor", "aot", "aot-dynamic"],
)
def test_compile(compiler, dynamic, backend):
    """Inductor's code relies on the strides that the op promises."""
    torch.compiler.reset()

    @functools.partial(torch.compile, fullgraph=True, backend=compiler, dynamic=dynamic)
    def compiled(**tensors):
        return outlook_attention(**tensors, num_heads=3, backend=backend)

    for shape in [(2, 3, 2, 6, 5, 3, 2, 1), (2, 3, 2, 9, 7, 3, 2, 1)]:
        tensors, settings = make(shape, torch.float32)
        expected = run(tensors, settings, backend=backend)
        out = compiled(**tensors)
        grads = torch.autograd.grad(out, list(tensors.values()), make_cotangent(out))
        ours = {"out": out.detach()} | {
            f"grad of {n}": g for n, g in zip(tensors, grads, strict=True)
        }
        assert worst_error(ours, expected) < 1e-5


@pytest.mark.parametrize("backend", FAST)
def test_export_is_one_node(backend):
    class Op(nn.Module):
        def forward(self, value, attn):
            return outlook_attention(value, attn, num_heads=2, backend=backend)

    tensors, _ = make((2, 2, 2, 6, 5, 3, 2, 1), torch.float32)
    args = tuple(x.detach() for x in tensors.values())
    program = torch.export.export(Op(), args)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert [t for t in targets if "outlook" in t] == ["mmlocal.outlook_attention.default"]
    assert torch.equal(program.module()(*args), Op()(*args))


@pytest.mark.parametrize("backend", FAST)
def test_vmap(backend):
    """The samples of vmap are one larger batch."""
    tensors, settings = make((3, 2, 2, 5, 4, 3, 2, 1))
    op = functools.partial(outlook_attention, **settings, backend=backend)
    expected = op(**tensors)
    out = vmap(lambda value, attn: op(value[None], attn[None])[0])(*tensors.values())
    assert torch.equal(out, expected)
    out = vmap(op, in_dims=(None, 0))(tensors["value"][:1], tensors["attn"][:, None])
    assert torch.equal(out[2, 0], op(tensors["value"][:1], tensors["attn"][2:])[0])


@pytest.mark.parametrize("backend", NAMES)
def test_flops(backend):
    """Two for each window, target, source and channel."""
    tensors, settings = make((2, 3, 4, 7, 6, 3, 2, 1), torch.float32)
    assert set(FLOPS) == {"mmlocal::outlook_attention"}
    shapes = [x.shape for x in tensors.values()]
    expected = 2 * 2 * (4 * 3) * 81 * 12
    assert FLOPS["mmlocal::outlook_attention"](*shapes, *settings.values()) == expected
    with FlopCounterMode(display=False) as counter:
        outlook_attention(**tensors, **settings, backend=backend)
    assert counter.get_total_flops() in (0, expected)


@over_backends
def test_memory_has_no_windows(backend):
    """What the pixels cost beside inputs, outputs and a softmax, as a multiple of ``value``."""
    extra = {}
    for side in (32, 64):
        tensors, settings = make((1, 1, 64, side, side, 5, 1, 2), torch.float32)
        size = {name: x.numel() * x.element_size() for name, x in tensors.items()}
        tensors = {n: restride(x, "channels-last").requires_grad_() for n, x in tensors.items()}
        op = functools.partial(outlook_attention, **settings, softmax=False, backend=backend)
        out = op(**tensors)
        cotangent = torch.ones_like(out)
        grad = functools.partial(torch.autograd.grad, out, list(tensors.values()), cotangent,
                                 retain_graph=True)  # fmt: skip
        extra[side] = (
            size["value"],
            peak_memory(lambda op=op, tensors=tensors: op(**tensors)) - 2 * size["attn"],
            peak_memory(grad) - sum(size.values()) - 2 * size["attn"],
        )
    value, *steps = (b - a for a, b in zip(extra[32], extra[64], strict=True))
    cost = [round(step / value, 1) for step in steps]
    print(f"memory of {backend}: forward, backward = {cost} in maps")
    if backend == "reference":
        assert min(cost) > 25  # what the others must not do
    else:
        assert max(cost) < 9


def _bad(**changes):
    tensors = {"value": torch.zeros(2, 6, 5, 4), "attn": torch.zeros(2, 3 * 81, 3, 2)}
    return tensors | {"num_heads": 3} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_heads": 1.5}, TypeError, "num_heads must be an int, got 1.5"),
        ({"num_heads": 4}, ValueError, "value must have a multiple of num_heads=4 .* got 6"),
        ({"num_heads": 2}, ValueError, r"attn must have .* \(2, 162, 3, 2\) .* got \(2, 243, 3, 2"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": 2}, ValueError, r"attn must .* \(2, 48, 3, 3\) for a value of \(2, 6, 5"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": 1}, ValueError, r"attn must have .* = \(2, 243, 5, 4\) .* got \(2, 243, 3, 2"),
        ({"padding": 3}, ValueError, "padding must be 0 to kernel_size - 1 = 2, got 3"),
        ({"padding": -1}, ValueError, "padding must be 0 to kernel_size - 1 = 2, got -1"),
        (
            {"value": torch.zeros(2, 6, 2, 4), "padding": 0},
            ValueError,
            "value must be at least one window of kernel_size=3 with padding=0, got a map of 2x4",
        ),
        ({"value": torch.zeros(6, 5, 4)}, ValueError, r"value must have .* got \(6, 5, 4\)"),
        ({"value": torch.zeros(2, 6, 0, 4)}, ValueError, r"one pixel, got \(2, 6, 0, 4\)"),
        ({"attn": torch.zeros(1, 243, 3, 2)}, ValueError, r"attn must .* got \(1, 243, 3, 2\)"),
        ({"attn": torch.zeros(2, 243, 3)}, ValueError, r"attn must .* got \(2, 243, 3\)"),
        ({"attn": None}, TypeError, "attn must be a tensor, got NoneType"),
        ({"attn": torch.zeros(2, 243, 3, 2).int()}, TypeError, "attn must be floating .*int32"),
        ({"softmax": "no"}, TypeError, "softmax must be True or False, got 'no'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*eager, reference, got 'cuda'"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_bad_input(changes, error, message):
    outlook_attention(**_bad())
    with pytest.raises(error, match=message):
        outlook_attention(**_bad(**changes))

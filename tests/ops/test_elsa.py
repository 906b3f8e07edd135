"""The ELSA op: its definition, its backends against the definition, and how it meets PyTorch."""

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
    make_projected,
    peak_memory,
    restride,
    running,
    worst_error,
)
from cases import make_elsa as make
from cases import run as run_op
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from mmlocal.ops import OPS, eager_common, elsa_attention, elsa_attention_projected
from mmlocal.ops.backends import Backend, choose_backend
from mmlocal.ops.elsa import BACKENDS as ALL_BACKENDS

run = functools.partial(run_op, elsa_attention)
BACKENDS = running(ALL_BACKENDS)
NAMES = [b.name for b in BACKENDS]
FAST = [b for b in BACKENDS if b.name != "reference"]
# (lam, gamma): every kind of ghost head
GHOSTS = [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 2.0), (2, -0.5)]
SHAPES = [
    # batch, heads, channels per head, height, width, kernel, dilation
    (1, 1, 1, 1, 1, 1, 1),
    (1, 1, 2, 1, 1, 7, 1),
    (2, 3, 2, 1, 5, 3, 2),
    (2, 1, 1, 3, 1, 3, 1),  # one column
    (1, 3, 4, 2, 6, 7, 1),  # height below the kernel
    (2, 1, 3, 9, 4, 5, 1),  # width below the kernel
    (1, 3, 2, 7, 7, 7, 1),  # equal
    (1, 1, 4, 8, 6, 7, 1),  # one above, one below
    (2, 3, 2, 5, 4, 3, 2),  # dilated: equal, one below
    (1, 3, 2, 13, 10, 5, 2),
    (2, 3, 4, 17, 23, 7, 1),  # no multiples of anything
    (0, 3, 2, 5, 6, 3, 1),  # empty batch
]


def shape_id(shape: tuple) -> str:
    b, n, c, h, w, k, d = shape
    return f"B{b}-heads{n}-C{n * c}-{h}x{w}-k{k}-d{d}"


def naive(value, attn, ghost_mul=None, ghost_add=None, *, kernel_size, dilation, lam, gamma):
    """The equation of the docstring, one number at a time."""
    batch, channels, height, width = value.shape
    k, taps = kernel_size, kernel_size**2
    per_head = channels // (attn.shape[1] // taps)
    out = torch.zeros_like(value)
    for b, c, y, x in itertools.product(*map(range, (batch, channels, height, width))):
        head = c // per_head
        logits = attn[b, head * taps : (head + 1) * taps, y, x]
        weights = (logits - logits.max()).exp()
        weights = weights / weights.sum()
        for i, j in itertools.product(range(k), range(k)):
            yy, xx = y + (i - k // 2) * dilation, x + (j - k // 2) * dilation
            if not (0 <= yy < height and 0 <= xx < width):
                continue
            mul = 1.0 if ghost_mul is None or lam == 0 else ghost_mul[c, i, j] ** lam
            add = 0.0 if ghost_add is None or gamma == 0 else gamma * ghost_add[c, i, j]
            out[b, c, y, x] += (mul * weights[i * k + j] + add) * value[b, c, yy, xx]
    return out


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("ghost", GHOSTS, ids=lambda g: f"lam{g[0]}-gamma{g[1]}")
@pytest.mark.parametrize(
    "shape",
    [(2, 2, 2, 4, 3, 3, 1), (1, 2, 1, 2, 4, 5, 1), (1, 1, 2, 4, 5, 3, 2), (1, 2, 1, 1, 1, 3, 1)],
    ids=shape_id,
)
def test_equation(shape, ghost, backend):
    tensors, settings = make(shape, ghost)
    with torch.no_grad():
        out = elsa_attention(**tensors, **settings, backend=backend)
        torch.testing.assert_close(out, naive(**tensors, **settings), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("softmax", [True, False], ids=["logits", "weights"])
@pytest.mark.parametrize("ghost", GHOSTS, ids=lambda g: f"lam{g[0]}-gamma{g[1]}")
def test_gradcheck(ghost, softmax, backend):
    for shape in [(2, 2, 2, 3, 4, 3, 1), (1, 1, 2, 4, 3, 3, 2)]:
        tensors, settings = make(shape, ghost)
        names = list(tensors)

        def op(*args, names=names, settings=settings):
            tensors = dict(zip(names, args, strict=True))
            return elsa_attention(**tensors, **settings, softmax=softmax, backend=backend)

        assert gradcheck(op, tuple(tensors.values()), raise_exception=True)


@pytest.mark.parametrize("ghost", GHOSTS, ids=lambda g: f"lam{g[0]}-gamma{g[1]}")
def test_second_derivatives_of_reference(ghost):
    tensors, settings = make((1, 2, 1, 2, 3, 3, 1), ghost)

    def op(*args):
        tensors_ = dict(zip(tensors, args, strict=True))
        return elsa_attention(**tensors_, **settings, backend="reference")

    assert gradgradcheck(op, tuple(tensors.values()))


@pytest.mark.parametrize("backend", [b.name for b in FAST])
def test_second_derivatives_are_refused_elsewhere(backend):
    """Never a wrong number in silence."""
    tensors, settings = make((1, 1, 2, 3, 3, 3, 1))
    out = elsa_attention(**tensors, **settings, backend=backend)
    (grad,) = torch.autograd.grad(out.square().sum(), tensors["value"], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        grad.sum().backward()


def _unsupported(backend: Backend) -> str | None:
    reasons = backend.not_supported_reasons(torch.empty(0))
    return "; ".join(reasons) or None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
def test_backend_holds_its_tolerance(backend, shape, dtype):
    """Against the definition in float64 on the same (rounded) numbers."""
    if reason := _unsupported(backend):
        pytest.skip(f"{backend.name}: {reason}")
    for ghost, softmax in itertools.product(GHOSTS, (True, False)):
        tensors, settings = make(shape, ghost, dtype)
        exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
        expected = run(exact, settings, softmax=softmax, backend="reference")
        ours = run(tensors, settings, softmax=softmax, backend=backend.name)
        assert all(x.dtype == dtype for x in ours.values())
        error = worst_error(ours, expected)
        assert error <= backend.atol[dtype], f"lam, gamma = {ghost}, softmax={softmax}"


def test_eager_works_sample_by_sample(monkeypatch):
    """A large batch on a CPU goes in chunks. Sums over the batch must include all of them."""
    tensors, settings = make((5, 2, 3, 6, 7, 3, 1))
    expected = run(tensors, settings, backend="reference")
    for samples in (1, 2, 5):
        monkeypatch.setattr(eager_common, "CPU_CHUNK", samples * tensors["value"][0].numel())
        assert worst_error(run(tensors, settings, backend="eager"), expected) < 5e-15


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("layout", ["channels-last", "sliced", "transposed", "expanded"])
def test_memory_layouts(layout, backend):
    tensors, settings = make((2, 3, 2, 6, 5, 3, 1))

    changed = {n: restride(x, layout).requires_grad_() for n, x in tensors.items()}
    assert not changed["value"].is_contiguous()
    plain = {n: x.detach().contiguous().requires_grad_() for n, x in changed.items()}
    expected = run(plain, settings, backend="reference")
    ours = run(changed, settings, backend=backend)
    assert worst_error(ours, expected) < 1e-13


@pytest.mark.parametrize("backend", NAMES)
def test_mixed_dtypes(backend):
    """As in mixed precision: activations in bfloat16, parameters in float32."""
    tensors, settings = make((2, 3, 2, 6, 5, 3, 1))
    dtypes = dict.fromkeys(tensors, torch.float32) | {"value": torch.bfloat16}
    mixed = {n: x.detach().to(dtypes[n]).requires_grad_() for n, x in tensors.items()}
    exact = {n: x.detach().double().requires_grad_() for n, x in mixed.items()}
    expected = run(exact, settings, backend="reference")
    ours = run(mixed, settings, backend=backend)
    assert ours["out"].dtype == torch.bfloat16
    assert {n: ours[f"grad of {n}"].dtype for n in mixed} == dtypes
    assert worst_error(ours, expected) < 8e-3


@pytest.mark.parametrize("backend", NAMES)
def test_autocast_does_not_touch_the_op(backend):
    """It accumulates in float32 whatever surrounds it, and returns the dtype of ``value``."""
    tensors, settings = make((2, 3, 2, 6, 5, 3, 1), dtype=torch.float32)
    expected = run(tensors, settings, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(tensors, settings, backend=backend)
    for name, x in expected.items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], x), name


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("ghost", [(1, 1), (0, 1), (1, 0)], ids=lambda g: f"lam{g[0]}-gamma{g[1]}")
def test_any_subset_of_inputs_may_be_frozen(ghost, backend):
    tensors, settings = make((2, 3, 2, 5, 4, 3, 1), ghost)
    full = run(tensors, settings, backend=backend)
    for count in range(1, len(tensors)):
        for live in itertools.combinations(tensors, count):
            part = {n: x.detach().requires_grad_(n in live) for n, x in tensors.items()}
            grads = run(part, settings, backend=backend)
            assert set(grads) == {"out", *(f"grad of {n}" for n in live)}
            assert worst_error(grads, {k: full[k] for k in grads}) < 1e-13
    with torch.no_grad():
        assert not elsa_attention(**tensors, **settings, backend=backend).requires_grad


@pytest.mark.parametrize("backend", NAMES)
def test_switched_off_ghosts_are_not_read(backend):
    tensors, settings = make((1, 2, 2, 4, 5, 3, 1), (1, 1))
    settings |= dict(lam=0, gamma=0)
    plain = elsa_attention(tensors["value"], tensors["attn"], **settings, backend=backend)
    tensors["ghost_mul"] = torch.full_like(tensors["ghost_mul"], torch.nan)
    tensors["ghost_add"] = torch.full_like(tensors["ghost_add"], torch.nan)
    assert torch.equal(elsa_attention(**tensors, **settings, backend=backend), plain)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_projection(bias, backend):
    """Bit by bit what a convolution before the op gives, where a backend does not fold it."""
    tensors, settings = make_projected((2, 3, 2, 6, 5, 3, 1), (1, 1, bias), 7, torch.float32)

    def by_convolution(value, features, proj_weight, proj_bias=None, **kwargs):
        attn = F.conv2d(features, proj_weight[:, :, None, None], proj_bias)
        return elsa_attention(value, attn, **kwargs)

    expected = run_op(by_convolution, tensors, settings, backend=backend)
    ours = run_op(elsa_attention_projected, tensors, settings, backend=backend)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(x, expected[n]) for n, x in ours.items())
    weight = tensors["proj_weight"].detach()[:, :, None, None]  # as a convolution has it
    ours = run_op(elsa_attention_projected, leaves(tensors, proj_weight=weight), settings,
                  backend=backend)  # fmt: skip
    assert ours["grad of proj_weight"].shape == (27, 7, 1, 1)
    assert all(torch.equal(x.view_as(expected[n]), expected[n]) for n, x in ours.items())


@pytest.mark.parametrize("backend", NAMES)
def test_projection_under_autocast(backend):
    """As the convolution: in the lower precision, whatever the dtype of the weight."""
    tensors, settings = make_projected((2, 3, 2, 6, 5, 3, 1), (1, 1, True), 7, torch.float32)
    value, features, weight, bias, *ghosts = tensors.values()
    settings |= dict(backend=backend)
    for other in (torch.float32, torch.bfloat16, torch.float16):
        with torch.autocast("cpu", torch.bfloat16):
            attn = F.conv2d(features, weight[:, :, None, None].to(other), bias)
            expected = elsa_attention(value, attn, *ghosts, **settings)
            ours = elsa_attention_projected(
                value, features, weight.to(other), bias, *ghosts, **settings
            )
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("backend", NAMES)
def test_projection_of_several_dtypes(backend):
    tensors, settings = make_projected((2, 3, 2, 6, 5, 3, 1), (1, 1, True), 7, torch.float32)
    tensors["proj_bias"] = tensors["proj_bias"].to(torch.bfloat16)
    message = "features, proj_weight and proj_bias must have one dtype, got .*32, .*32, .*bfloat16"
    with pytest.raises(TypeError, match=message):
        elsa_attention_projected(**tensors, **settings, backend=backend)


@pytest.mark.parametrize("backend", NAMES)
def test_inputs_are_left_alone(backend):
    tensors, settings = make((2, 2, 2, 5, 4, 3, 1))
    before = {n: x.detach().clone() for n, x in tensors.items()}
    result = run(tensors, settings, backend=backend)
    assert all(torch.equal(x, before[n]) for n, x in tensors.items())
    assert all(
        x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
        for x, y in itertools.product(result.values(), tensors.values())
    )


@pytest.mark.parametrize("backend", NAMES)
def test_large_logits_do_not_overflow(backend):
    tensors, settings = make((1, 2, 2, 5, 4, 3, 1), dtype=torch.float16)
    tensors["attn"] = (tensors["attn"].detach() * 1e4).requires_grad_()
    assert all(x.isfinite().all() for x in run(tensors, settings, backend=backend).values())


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.deterministic], ids=lambda b: b.name)
def test_two_runs_are_bit_equal(backend):
    tensors, settings = make((2, 3, 4, 17, 23, 7, 1), dtype=torch.float32)
    first = run(tensors, settings, backend=backend.name)
    torch.use_deterministic_algorithms(True)
    try:
        second = run(tensors, settings, backend=backend.name)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, second[n]) for n, x in first.items())


@pytest.mark.parametrize("backend", [b.name for b in FAST])
@pytest.mark.parametrize("ghost", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_opcheck(ghost, backend):
    """Schema, fake tensors (shapes *and* strides), autograd registration, AOT autograd."""
    for shape, layout in [
        ((2, 3, 2, 6, 5, 3, 1), torch.channels_last),
        ((1, 1, 2, 5, 4, 5, 2), torch.contiguous_format),
    ]:
        tensors, settings = make(shape, ghost, torch.float32)
        value = tensors["value"].detach().contiguous(memory_format=layout).requires_grad_()
        args = [tensors.get(n) for n in ("attn", "ghost_mul", "ghost_add")]
        args += [settings["kernel_size"], settings["dilation"], True, backend]
        torch.library.opcheck(torch.ops.mmlocal.elsa_attention, (value, *args))
        # AOT autograd only compares values, so hold the strides of the backward op on its own.
        frozen = [x.detach() if isinstance(x, torch.Tensor) else x for x in (value, *args)]
        grad = torch.randn(value.shape)
        needs = [x is not None for x in frozen[:4]]
        for keep in ({0, 1, 2, 3}, {0}, {1}, {2, 3}):
            needed = [need and i in keep for i, need in enumerate(needs)]
            torch.library.opcheck(
                torch.ops.mmlocal.elsa_attention_backward,
                (grad, *frozen, needed),
                **BACKWARD_CHECKS,
            )


# The reference is plain PyTorch, which Inductor knows.
@pytest.mark.parametrize("backend", [b.name for b in FAST])
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
        return elsa_attention(**tensors, kernel_size=3, lam=1, gamma=1, backend=backend)

    for shape in [(2, 3, 2, 6, 5, 3, 1), (2, 3, 2, 9, 7, 3, 1)]:
        tensors, settings = make(shape, dtype=torch.float32)
        expected = run(tensors, settings, backend=backend)
        out = compiled(**tensors)
        grads = torch.autograd.grad(out, list(tensors.values()), make_cotangent(out))
        ours = {"out": out.detach()} | {
            f"grad of {n}": g for n, g in zip(tensors, grads, strict=True)
        }
        assert worst_error(ours, expected) < 1e-5


def test_compile_under_autocast():
    """Inputs that autocast made bfloat16, as in a mixed-precision model."""
    torch.compiler.reset()
    tensors, settings = make((1, 2, 2, 5, 4, 3, 1), dtype=torch.float32)

    def step(value, weight, attn, ghost_mul, ghost_add):
        with torch.autocast("cpu", torch.bfloat16):
            value = nn.functional.conv2d(value, weight)
            return elsa_attention(value, attn, ghost_mul, ghost_add, **settings)

    weight = torch.eye(4)[:, :, None, None].requires_grad_()
    args = (tensors["value"], weight, *list(tensors.values())[1:])
    eager = step(*args)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*args)
    assert eager.dtype == compiled.dtype == torch.bfloat16
    assert torch.equal(eager, compiled)
    compiled.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", [b.name for b in FAST])
def test_export_is_one_node(backend):
    class Op(nn.Module):
        def forward(self, value, attn, ghost_add):
            return elsa_attention(value, attn, None, ghost_add, kernel_size=3, backend=backend)

    tensors, _ = make((2, 2, 2, 6, 5, 3, 1), (0, 1), torch.float32)
    args = tuple(x.detach() for x in tensors.values())
    program = torch.export.export(Op(), args)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert [t for t in targets if "elsa" in t] == ["mmlocal.elsa_attention.default"]
    assert torch.equal(program.module()(*args), Op()(*args))


def extra_memory(backend: str, k: int, ghost: tuple, side: int) -> tuple[int, int, int]:
    """Bytes of ``value``, and of what the forward and the backward pass hold at once beside the
    op's inputs and outputs, and one softmax map, or two in the backward pass."""
    tensors, settings = make((1, 2, 16, side, side, k, 1), ghost, torch.float32)
    size = {name: x.numel() * x.element_size() for name, x in tensors.items()}
    outs = []

    def forward():
        outs.append(elsa_attention(**tensors, **settings, backend=backend))

    def backward():
        return torch.autograd.grad(outs, list(tensors.values()), cotangent)

    cotangent = torch.ones_like(tensors["value"])
    forward_peak = peak_memory(forward)
    backward_peak = peak_memory(backward)
    return (
        size["value"],
        forward_peak - size["value"] - size["attn"],
        backward_peak - sum(size.values()) - 2 * size["attn"],
    )


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("ghost", [(0, 1), (1, 1)], ids=lambda g: f"lam{g[0]}-gamma{g[1]}")
def test_memory_does_not_grow_with_the_window(ghost, backend):
    """What the pixels cost, as a multiple of ``value``: from two maps, so that constants (the
    weights of a convolution, re-ordered by the library) drop out."""
    cost = {}
    for k in (3, 7, 11):
        small = extra_memory(backend, k, ghost, side=32)
        large = extra_memory(backend, k, ghost, side=64)
        value, *steps = (b - a for a, b in zip(small, large, strict=True))
        cost[k] = [round(step / value, 1) for step in steps]
    print(f"memory of {backend}, {ghost}: {cost} (kernel: [forward, backward] in maps)")
    if backend == "reference":
        assert min(cost[11]) > 100  # what the others must not do
    else:
        assert max(max(steps) for steps in cost.values()) < 9


def _bad(**changes):
    tensors = {
        "value": torch.zeros(2, 6, 5, 4),
        "attn": torch.zeros(2, 27, 5, 4),
        "ghost_mul": torch.zeros(6, 3, 3),
        "ghost_add": torch.zeros(6, 3, 3),
    }
    return tensors | {"kernel_size": 3} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size must be a positive odd number, got 4"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be .* got 0"),
        ({"kernel_size": -3}, ValueError, "kernel_size must be .* got -3"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"softmax": "no"}, TypeError, "softmax must be True or False, got 'no'"),
        ({"value": torch.zeros(6, 5, 4)}, ValueError, r"value must have .* got \(6, 5, 4\)"),
        ({"attn": torch.zeros(27, 5, 4)}, ValueError, r"attn must have .* got \(27, 5, 4\)"),
        ({"value": torch.zeros(2, 6, 0, 4)}, ValueError, r"one pixel, got \(2, 6, 0, 4\)"),
        ({"value": torch.zeros(2, 0, 5, 4)}, ValueError, r"one channel .* got \(2, 0, 5, 4\)"),
        (
            {"value": torch.zeros(2, 6, 5, 4, dtype=torch.uint8)},
            TypeError,
            r"value must be floating point, got torch.uint8",
        ),
        (
            {"attn": torch.zeros(2, 27, 5, 4, dtype=torch.int64)},
            TypeError,
            r"attn must be floating point, got torch.int64",
        ),
        (
            {"ghost_mul": torch.zeros(6, 3, 3, dtype=torch.complex64)},
            TypeError,
            "ghost_mul must be floating point, got torch.complex64",
        ),
        (
            {"ghost_add": torch.zeros(6, 3, 3, dtype=torch.bool)},
            TypeError,
            "ghost_add must be floating point, got torch.bool",
        ),
        ({"attn": torch.zeros(2, 28, 5, 4)}, ValueError, r"attn .* multiple of 9\), got 28"),
        ({"attn": torch.zeros(2, 0, 5, 4)}, ValueError, r"attn .* multiple of 9\), got 0"),
        ({"attn": torch.zeros(2, 36, 5, 4)}, ValueError, "value .* heads=4 channels, got 6"),
        ({"attn": torch.zeros(1, 27, 5, 4)}, ValueError, r"attn must .*, got \(1, 27, 5, 4\)"),
        ({"attn": torch.zeros(2, 27, 4, 5)}, ValueError, r"attn must .*, got \(2, 27, 4, 5\)"),
        (
            {"ghost_mul": torch.zeros(2, 3, 3)},
            ValueError,
            r"ghost_mul must have shape .* \(6, 3, 3\), got \(2, 3, 3\)",
        ),
        (
            {"ghost_add": torch.zeros(1, 6, 3, 3)},
            ValueError,
            r"ghost_add must have shape .* got \(1, 6, 3, 3\)",
        ),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*eager, reference, got 'cuda'"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_bad_input(changes, error, message):
    elsa_attention(**_bad())
    with pytest.raises(error, match=message):
        elsa_attention(**_bad(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kernel_size": 5}, ValueError, r"proj_weight must have .*multiple of 25\), got 27"),
        ({"kernel_size": 4}, ValueError, "kernel_size must be a positive odd number, got 4"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"lam": float("nan")}, ValueError, "lam must be a finite number, got nan"),
        ({"value": torch.zeros(2, 4, 5, 4)}, ValueError, "value must have .* heads=3 channels"),
        ({"features": torch.zeros(7, 5, 4)}, ValueError, r"features must .* 4 .* got \(7, 5, 4\)"),
        ({"features": torch.zeros(2, 7, 4, 5)}, ValueError, "features must have the batch size"),
        ({"proj_weight": None}, TypeError, "proj_weight must be a tensor, got NoneType"),
        ({"proj_weight": torch.zeros(27)}, ValueError, r"proj_weight must .* got \(27,\)"),
        ({"proj_weight": torch.zeros(27, 6)}, ValueError, r"\(heads \* .*, 7\) .* \(27, 6\)"),
        ({"proj_weight": torch.zeros(27, 7, 3, 3)}, ValueError, r"got \(27, 7, 3, 3\)"),
        ({"proj_weight": torch.zeros(0, 7), "proj_bias": None}, ValueError, "of 9.*, got 0"),
        ({"proj_bias": torch.zeros(26)}, ValueError, r"shape \(27,\), got \(26,\)"),
        ({"proj_bias": torch.zeros(27).int()}, TypeError, "proj_bias must be .* torch.int32"),
        ({"ghost_add": torch.zeros(2, 3, 3)}, ValueError, r"ghost_add .* got \(2, 3, 3\)"),
        ({"backend": "cuda"}, ValueError, "elsa_attention_projected: backend must .* got 'cuda'"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_bad_projection(changes, error, message):
    good = _bad(
        features=torch.zeros(2, 7, 5, 4),
        proj_weight=torch.zeros(27, 7),
        proj_bias=torch.zeros(27),
    )
    del good["attn"]
    elsa_attention_projected(**good)
    with pytest.raises(error, match=message):
        elsa_attention_projected(**good | changes)


def _backend(name: str, **changes) -> Backend:
    settings = dict(
        description="", module="math", devices=("any",), dtypes=(torch.float32,), atol={}
    )
    return Backend(name=name, deterministic=True, **(settings | changes))


def test_choice_of_backend():
    broken = _backend("broken", requires=lambda: "needs a thing")
    gpu = _backend("gpu", devices=("cuda",))
    half = _backend("half", dtypes=(torch.float16,))
    good, other = _backend("good"), _backend("other")
    value = torch.zeros(1)
    assert choose_backend("op", (broken, gpu, half, good, other), value, None) is good
    assert choose_backend("op", (good, other), value, "other") is other
    for name, reason in [
        ("broken", "broken: needs a thing"),
        ("gpu", "gpu: runs on cuda, not on cpu"),
        ("half", "half: does not take torch.float32"),
    ]:
        with pytest.raises(RuntimeError, match=reason):
            choose_backend("op", (broken, gpu, half, good), value, name)
    with pytest.raises(RuntimeError, match=r"op: .*needs a thing \| gpu: .* \| half: "):
        choose_backend("op", (broken, gpu, half), value, None)


@pytest.mark.parametrize("op", OPS)
def test_backends_are_complete(op):
    backends = OPS[op].backends
    assert len({b.name for b in backends}) == len(backends)
    assert backends[-1].name == "reference"
    for backend in backends:
        assert set(backend.atol) == set(backend.dtypes)
        if backend.unavailable_reason() is None:
            assert callable(backend.load().forward)

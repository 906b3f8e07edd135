"""The op of scores: its definition, its backends against the definition, and how it meets PyTorch.

Random calls of it are in test_random_problems.py, and its Triton kernels in test_triton.py.
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
    make_elsa,
    peak_memory,
    restride,
    running,
    worst_error,
)
from cases import make_neighborhood as make
from cases import run as run_op
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from mmlocal.ops import elsa_attention, neighborhood_scores
from mmlocal.ops.neighborhood import BACKENDS as ALL_BACKENDS

BACKENDS = running(ALL_BACKENDS)
NAMES = [b.name for b in BACKENDS]
FAST = [b.name for b in BACKENDS if b.name != "reference"]
backends = pytest.mark.parametrize("backend", NAMES)
fast_backends = pytest.mark.parametrize("backend", FAST)
borders = pytest.mark.parametrize("border", ["zero", "mask"])
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
    (1, 3, 2, 13, 10, 5, 2),
    (2, 32, 3, 9, 21, 3, 1),  # several heads in a vector
    (1, 2, 40, 12, 11, 3, 1),  # a vector across two heads
    (1, 7, 3, 10, 19, 5, 1),  # heads that begin anywhere
    (1, 1, 48, 5, 30, 3, 3),  # an odd number of vectors
    (0, 3, 2, 5, 6, 3, 1),  # empty batch
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def finite(query, key, **settings):
    """The op with 7 in place of -inf, which has no distance from -inf."""
    scores = neighborhood_scores(query, key, **settings)
    return scores.masked_fill(scores == -torch.inf, 7.0)


run = functools.partial(run_op, finite)


def naive(query, key, *, num_heads, kernel_size, dilation, border):
    """The equation of the docstring, one number at a time."""
    batch, channels, height, width = query.shape
    k, per_head = kernel_size, channels // num_heads
    outside = 0.0 if border == "zero" else -torch.inf
    out = torch.full((batch, num_heads * k * k, height, width), outside, dtype=query.dtype)
    sides = map(range, (batch, num_heads, k, k, height, width))
    for b, n, i, j, y, x in itertools.product(*sides):
        yy, xx = y + (i - k // 2) * dilation, x + (j - k // 2) * dilation
        if 0 <= yy < height and 0 <= xx < width:
            own = slice(n * per_head, (n + 1) * per_head)
            score = query[b, own, y, x] @ key[b, own, yy, xx]
            out[b, (n * k + i) * k + j, y, x] = score
    return out


@backends
@borders
@pytest.mark.parametrize(
    "shape", [(2, 2, 2, 4, 3, 3, 1), (1, 2, 3, 2, 4, 5, 1), (1, 1, 2, 4, 5, 3, 2)], ids=str
)
def test_equation(shape, border, backend):
    tensors, settings = make(shape, border)
    with torch.no_grad():
        out = neighborhood_scores(**tensors, **settings, backend=backend)
        torch.testing.assert_close(out, naive(**tensors, **settings), rtol=0, atol=1e-13)


@backends
@borders
def test_gradcheck(border, backend):
    for shape in [(2, 2, 2, 3, 4, 3, 1), (1, 1, 2, 4, 3, 3, 2), (1, 1, 2, 2, 3, 5, 1)]:
        tensors, settings = make(shape, border)

        def op(query, key, settings=settings):
            return finite(query, key, **settings, backend=backend)

        assert gradcheck(op, tuple(tensors.values()), raise_exception=True)


@borders
def test_second_derivatives_of_reference(border):
    tensors, settings = make((1, 2, 1, 2, 3, 3, 1), border)

    def op(query, key):
        return finite(query, key, **settings, backend="reference")

    assert gradgradcheck(op, tuple(tensors.values()))


@fast_backends
def test_second_derivatives_are_refused_elsewhere(backend):
    tensors, settings = make((1, 1, 2, 3, 3, 3, 1))
    out = neighborhood_scores(**tensors, **settings, backend=backend)
    (first,) = torch.autograd.grad(out.square().sum(), tensors["query"], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@shapes
@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
def test_backend_holds_its_tolerance(backend, shape, dtype):
    """Against the definition in float64 on the same (rounded) numbers."""
    for border in ("zero", "mask"):
        tensors, settings = make(shape, border, dtype)
        exact = leaves(tensors, torch.float64)
        expected = run(exact, settings, backend="reference")
        ours = run(tensors, settings, backend=backend.name)
        assert all(x.dtype == dtype for x in ours.values())
        assert worst_error(ours, expected) <= backend.atol[dtype], border


@backends
@pytest.mark.parametrize("layout", ["channels-last", "sliced", "transposed", "expanded"])
def test_memory_layouts(layout, backend):
    tensors, settings = make((2, 3, 2, 6, 5, 3, 1), "mask")
    for names in (["query"], ["key"], ["query", "key"]):
        changed = {n: restride(x, layout) if n in names else x for n, x in tensors.items()}
        changed = {n: x.detach().requires_grad_() for n, x in changed.items()}
        plain = {n: x.detach().contiguous().requires_grad_() for n, x in changed.items()}
        expected = run(plain, settings, backend="reference")
        assert worst_error(run(changed, settings, backend=backend), expected) < 1e-13


@backends
def test_autocast_does_not_touch_the_op(backend):
    tensors, settings = make((2, 3, 2, 6, 5, 3, 1), dtype=torch.float32)
    expected = run(tensors, settings, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(tensors, settings, backend=backend)
    assert all(x.dtype == torch.float32 for x in ours.values())
    assert all(torch.equal(x, expected[name]) for name, x in ours.items())


@backends
@borders
def test_either_map_may_be_frozen(border, backend):
    tensors, settings = make((2, 3, 2, 5, 4, 3, 1), border)
    full = run(tensors, settings, backend=backend)
    for name in tensors:
        part = {n: x.detach().requires_grad_(n == name) for n, x in tensors.items()}
        ours = run(part, settings, backend=backend)
        assert ours.keys() == {"out", f"grad of {name}"}
        assert all(torch.equal(x, full[n]) for n, x in ours.items())
    with torch.no_grad():
        assert not neighborhood_scores(**tensors, **settings, backend=backend).requires_grad


@backends
def test_one_map_as_query_and_key(backend):
    """The gradient has both parts, and the map is left alone."""
    tensors, settings = make((2, 3, 2, 5, 4, 3, 1))
    x, before = tensors["query"], tensors["query"].detach().clone()
    out = neighborhood_scores(x, x, **settings, backend=backend)
    (ours,) = torch.autograd.grad(out, x, make_cotangent(out))
    parts = run(dict(query=x, key=x.detach().clone().requires_grad_()), settings, backend=backend)
    torch.testing.assert_close(ours, parts["grad of query"] + parts["grad of key"])
    assert torch.equal(x, before)


@backends
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 7), (9, 4)], ids=str)
def test_softmax_over_masked_scores(size, backend):
    """The taps in the map share the whole weight, and nothing is NaN, in values and gradients."""
    tensors, settings = make((2, 2, 3, *size, 7, 1), "mask")
    value = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)

    def attend(query, key, value):
        scores = neighborhood_scores(query, key, **settings, backend=backend)
        return elsa_attention(value, scores, kernel_size=7, backend=backend)

    def expected(query, key, value):
        """Over all pairs of pixels, those out of reach masked."""
        rows, cols = torch.meshgrid(*map(torch.arange, size), indexing="ij")
        rows, cols = rows.flatten(), cols.flatten()
        near = (rows[:, None] - rows).abs().maximum((cols[:, None] - cols).abs()) <= 3
        q, k, v = (x.flatten(2).unflatten(1, (2, 3)) for x in (query, key, value))
        logits = (q.mT @ k).masked_fill(~near, -torch.inf)
        return (v @ logits.softmax(dim=3).mT).view_as(value)

    tensors = tensors | {"value": value}
    ours = run_op(attend, tensors, {})
    assert worst_error(ours, run_op(expected, tensors, {})) < 1e-12


@backends
@pytest.mark.parametrize("number", [torch.nan, torch.inf], ids=str)
def test_a_spoiled_key_stays_in_its_windows(number, backend):
    for border, name in itertools.product(("zero", "mask"), ("query", "key")):
        tensors = {n: torch.ones(1, 4, 7, 7) for n in ("query", "key")}
        tensors[name][0, 3, 3, 1] = number
        settings = dict(num_heads=2, kernel_size=3, border=border, backend=backend)
        out = neighborhood_scores(**tensors, **settings)[0].unflatten(0, (2, 3, 3))
        plain = neighborhood_scores(torch.ones(1, 4, 7, 7), torch.ones(1, 4, 7, 7), **settings)
        plain = plain[0].unflatten(0, (2, 3, 3))
        spoiled = torch.zeros_like(out, dtype=torch.bool)
        for i, j in itertools.product(range(3), range(3)):
            row, col = (3, 1) if name == "query" else (4 - i, 2 - j)
            spoiled[1, i, j, row, col] = True
        assert torch.equal(out[~spoiled], plain[~spoiled])
        assert (out[spoiled] == number).all() if number == torch.inf else out[spoiled].isnan().all()


@backends
def test_gradients_outside_the_map_are_not_read(backend):
    """Such as NaN from a softmax of -inf alone."""
    tensors, settings = make((1, 2, 3, 4, 5, 5, 1), "mask")
    out = neighborhood_scores(**tensors, **settings, backend=backend)
    outside = out == -torch.inf
    cotangent = make_cotangent(out)
    maps = list(tensors.values())
    plain = torch.autograd.grad(out, maps, cotangent, retain_graph=True)
    spoiled = torch.autograd.grad(out, maps, cotangent.masked_fill(outside, torch.nan))
    assert outside.any()
    assert all(torch.equal(a, b) for a, b in zip(plain, spoiled, strict=True))


@backends
def test_vmap_and_func_grad(backend):
    tensors, settings = make((2, 2, 3, 4, 5, 3, 1))
    query, key = (x.detach() for x in tensors.values())

    def loss(query, key):
        out = neighborhood_scores(query[None], key[None], **settings, backend=backend)
        return (out * make_cotangent(out)).sum()

    ours = vmap(grad(loss, argnums=(0, 1)))(query, key)
    for i, (q, k) in enumerate(zip(query, key, strict=True)):
        expected = grad(loss, argnums=(0, 1))(q, k)
        assert all(torch.allclose(x[i], y) for x, y in zip(ours, expected, strict=True))


@fast_backends
def test_opcheck(backend):
    """Schema, fake tensors (shapes *and* strides), autograd registration, AOT autograd."""
    for shape, layout in [
        ((2, 3, 2, 6, 5, 3, 1), torch.channels_last),
        ((1, 1, 2, 5, 4, 5, 2), torch.contiguous_format),
    ]:
        tensors, settings = make(shape, dtype=torch.float32)
        query, key = (x.detach().contiguous(memory_format=layout) for x in tensors.values())
        extra = (settings["num_heads"], settings["kernel_size"], settings["dilation"], False)
        args = (query.clone().requires_grad_(), key.clone().requires_grad_(), *extra, backend)
        torch.library.opcheck(torch.ops.mmlocal.neighborhood_scores, args)
        out = neighborhood_scores(query, key, **settings)
        for needed in ([True, True], [True, False], [False, True]):
            torch.library.opcheck(
                torch.ops.mmlocal.neighborhood_scores_backward,
                (torch.randn_like(out), query, key, *extra, backend, needed),
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
        return neighborhood_scores(
            **tensors, num_heads=3, kernel_size=3, dilation=1, border="zero", backend=backend
        )

    for shape in [(2, 3, 2, 6, 5, 3, 1), (2, 3, 2, 9, 7, 3, 1)]:
        tensors, settings = make(shape, dtype=torch.float32)
        expected = run(tensors, settings, backend=backend)
        assert worst_error(run_op(compiled, tensors, {}), expected) < 1e-5


@fast_backends
def test_export_is_one_node(backend):
    class Op(nn.Module):
        def forward(self, query, key):
            return neighborhood_scores(query, key, num_heads=2, kernel_size=3, backend=backend)

    tensors, _ = make((2, 2, 2, 6, 5, 3, 1), dtype=torch.float32)
    args = tuple(x.detach() for x in tensors.values())
    program = torch.export.export(Op(), args)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets == ["mmlocal.neighborhood_scores.default"]
    assert torch.equal(program.module()(*args), Op()(*args))


@fast_backends
def test_no_window_is_stored(backend):
    """Beside inputs and outputs, both passes hold no more than a few maps of the input's size."""
    tensors, settings = make((1, 2, 16, 48, 48, 9, 1), dtype=torch.float32)
    tensors = {
        n: x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        for n, x in tensors.items()
    }
    size = tensors["query"].numel() * 4
    outs = []

    def forward():
        outs.append(neighborhood_scores(**tensors, **settings, backend=backend))

    peak = peak_memory(forward)
    scores = outs[0].numel() * 4
    cotangent = torch.ones_like(outs[0])
    back = peak_memory(lambda: torch.autograd.grad(outs[0], list(tensors.values()), cotangent))
    print(f"{backend}: forward {peak / size:.1f} maps, of which {scores / size:.1f} scores, "
          f"backward {back / size:.1f} maps")  # fmt: skip
    copies = {"cpp": 0, "eager": 1}[backend]  # the loops of eager need whole rows
    assert peak <= (1 + copies) * scores + 4 * copies * size
    assert back <= copies * scores + (2 + 8 * copies) * size
    assert 81 * size > 10 * scores  # the windows, which no backend stores


@backends
def test_threads_and_runs_give_the_same_bits(backend):
    chosen = next(b for b in BACKENDS if b.name == backend)
    tensors, settings = make((2, 3, 4, 17, 23, 7, 1), dtype=torch.float32)
    first = run(tensors, settings, backend=backend)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if chosen.any_threads else threads)
        again = run(tensors, settings, backend=backend)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, again[name]) for name, x in first.items())


@backends
def test_it_is_the_gradient_of_the_attention(backend):
    """The scores of a gradient and the values are the gradient of the weights."""
    tensors, settings = make_elsa((2, 3, 4, 6, 7, 3, 2), (0, 0))
    attend = functools.partial(elsa_attention, **settings, softmax=False, backend="reference")
    out = attend(**tensors)
    (expected,) = torch.autograd.grad(out, tensors["attn"], make_cotangent(out))
    ours = neighborhood_scores(
        make_cotangent(out), tensors["value"].detach(), num_heads=3, kernel_size=3, dilation=2,
        backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(ours, expected)


def test_zero_border_is_that_of_unfold():
    tensors, settings = make((2, 3, 4, 6, 7, 5, 1))
    query, key = tensors.values()
    windows = F.unfold(key, 5, padding=2).view(2, 3, 4, 25, 42)
    expected = torch.einsum("bncp,bnctp->bntp", query.view(2, 3, 4, 42), windows)
    out = neighborhood_scores(query, key, **settings)
    torch.testing.assert_close(out, expected.reshape(out.shape))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size must be a positive odd number, got 4"),
        ({"kernel_size": -3}, ValueError, "kernel_size must be .* got -3"),
        ({"kernel_size": 3.0}, TypeError, "kernel_size must be an int, got 3.0"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_heads": 4}, ValueError, "num_heads must divide the 6 channels of query, got 4"),
        ({"num_heads": True}, TypeError, "num_heads must be an int, got True"),
        ({"border": "wrap"}, ValueError, "border must be 'zero' or 'mask', got 'wrap'"),
        ({"query": None}, TypeError, "query must be a tensor, got NoneType"),
        ({"query": torch.zeros(6, 5, 4)}, ValueError, r"query must have .* got \(6, 5, 4\)"),
        (
            {"key": torch.zeros(2, 6, 4, 5)},
            ValueError,
            r"key must .* of query .*, got \(2, 6, 4, 5\)",
        ),
        ({"key": torch.zeros(1, 6, 5, 4)}, ValueError, r"key must have .*, got \(1, 6, 5, 4\)"),
        (
            {"key": torch.zeros(2, 3, 5, 4)},
            ValueError,
            r"key must have the shape of query \(2, 6, 5, 4\), got \(2, 3, 5, 4\)",
        ),
        (
            {"key": torch.zeros(2, 6, 5, 4).half()},
            TypeError,
            r"key must have the dtype of query \(torch.float32\), got torch.float16",
        ),
        ({"query": torch.zeros(2, 6, 5, 4).int()}, TypeError, "query must be floating point"),
        ({"query": torch.zeros(2, 6, 0, 4)}, ValueError, r"query must .* one pixel, got \(2, 6, 0"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*reference, got 'cuda'"),
    ],
    ids=str,
)
def test_bad_input(changes, error, message):
    maps = dict(query=torch.zeros(2, 6, 5, 4), key=torch.zeros(2, 6, 5, 4))
    good = maps | dict(num_heads=3, kernel_size=3)
    neighborhood_scores(**good)
    with pytest.raises(error, match=message):
        neighborhood_scores(**good | changes)

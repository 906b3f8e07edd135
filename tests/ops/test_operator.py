"""How the ops meet the rest of PyTorch: torch.func, meta and fake tensors, compilers, bad calls."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vjp, vmap

from mmlocal.layers import ELSA, QnA
from mmlocal.ops import OPS, elsa_attention, qna_attention

CASES = [
    (op.name, backend.name)
    for op in OPS.values()
    for backend in op.backends
    if backend.name != "triton" and not backend.unavailable_reason()
]
cases = pytest.mark.parametrize(("op", "backend"), CASES, ids=["-".join(c) for c in CASES])


# Tables that the benchmark's inputs leave out. Each has the shape of another table.
MORE_TABLES = {"elsa": {"ghost_mul": "ghost_add"}}


def make(op: str, backend: str | None, samples: int = 3):
    """A function of maps and tables, a list of several samples of each map, and the tables."""
    g = torch.Generator().manual_seed(0)
    randn = functools.partial(torch.randn, generator=g, dtype=torch.float64)
    analysis = OPS[op].load_analysis()
    case = analysis.CASES["smoke"][0]
    case = replace(case, batch=1, channels=2 * case.heads, height=4, width=3)
    inputs = analysis.make_inputs(case, lambda *shape: randn(*shape))
    for name, like in MORE_TABLES.get(op, {}).items():
        inputs[name] = randn(*inputs[like].shape)
    maps = [n for n, x in inputs.items() if x.dim() == 4 and n not in OPS[op].tables]
    names = [*maps, *(n for n in inputs if n not in maps)]
    call = functools.partial(OPS[op].function, **analysis.settings(case), backend=backend)

    def function(*tensors):
        return call(**dict(zip(names, tensors, strict=True)))

    several = [randn(samples, *inputs[name].shape) for name in maps]
    return function, several, [inputs[name] for name in names[len(maps) :]]


def by_autograd(f, args, cotangent=None):
    leaves = [x.clone().requires_grad_() for x in args]
    out = f(*leaves)
    return torch.autograd.grad(
        out, leaves, torch.ones_like(out) if cotangent is None else cotangent
    )


@cases
def test_grad_vjp_and_jacrev(op, backend):
    f, maps, tables = make(op, backend)
    args = (*(x[0] for x in maps), *tables)
    every = tuple(range(len(args)))
    for ours, expected in zip(
        grad(lambda *x: f(*x).sum(), argnums=every)(*args), by_autograd(f, args), strict=True
    ):
        torch.testing.assert_close(ours, expected)
    out, back = vjp(f, *args)
    cotangent = torch.randn_like(out)
    for ours, expected in zip(back(cotangent), by_autograd(f, args, cotangent), strict=True):
        torch.testing.assert_close(ours, expected)
    jacobians = jacrev(f, argnums=every)(*args)
    for jacobian, expected in zip(jacobians, by_autograd(f, args, cotangent), strict=True):
        product = torch.tensordot(cotangent, jacobian, dims=out.dim())
        torch.testing.assert_close(product, expected)


@cases
def test_vmap_and_gradients_per_sample(op, backend):
    f, maps, tables = make(op, backend)
    args = (*maps, *tables)
    over_maps = (*[0] * len(maps), *[None] * len(tables))
    one_by_one = [(*one, *tables) for one in zip(*maps, strict=True)]
    out = vmap(f, in_dims=over_maps)(*args)
    torch.testing.assert_close(out, torch.stack([f(*one) for one in one_by_one]))
    others = one_by_one[0][1:]
    out = vmap(f, in_dims=(1, *[None] * len(others)), out_dims=1)(maps[0].movedim(0, 1), *others)
    torch.testing.assert_close(out, torch.stack([f(v, *others) for v in maps[0]], dim=1))
    for argnums in (tuple(range(len(maps))), tuple(range(len(args)))):
        ours = vmap(grad(lambda *x: f(*x).sum(), argnums=argnums), in_dims=over_maps)(*args)
        expected = [by_autograd(f, one) for one in one_by_one]
        for i, x in zip(argnums, ours, strict=True):
            torch.testing.assert_close(x, torch.stack([grads[i] for grads in expected]))


@cases
def test_vmap_over_each_table(op, backend):
    """An ensemble, whose members have their own numbers in one table."""
    f, maps, tables = make(op, backend)
    args = (*(x[0] for x in maps), *tables)
    for i in range(len(maps), len(args)):
        members = [(*args[:i], args[i] + shift, *args[i + 1 :]) for shift in (0, 1)]
        in_dims = tuple(0 if j == i else None for j in range(len(args)))
        out = vmap(f, in_dims)(*args[:i], torch.stack([m[i] for m in members]), *args[i + 1 :])
        torch.testing.assert_close(out, torch.stack([f(*m) for m in members]))


@cases
def test_derivatives_that_only_the_definition_has(op, backend):
    f, maps, tables = make(op, backend)
    args = (*(x[0] for x in maps), *tables)
    leaves = [x.clone().requires_grad_() for x in args]

    def forward_mode():
        return jvp(f, args, tuple(map(torch.ones_like, args)))

    def second_order():
        grads = torch.autograd.grad(f(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.sum() for g in grads), leaves)

    for call, what in ((forward_mode, "forward-mode derivatives"), (second_order, "second deriv")):
        if backend == "reference":
            call()
            continue
        name = OPS[op].function.__name__
        message = f"{name}: backend='{backend}' has no {what}.* backend='reference', which"
        with pytest.raises(RuntimeError, match=message):
            call()


@cases
def test_transforms_where_autograd_is_off(op, backend):
    """A call then leaves out a function of autograd, but no sample of vmap and no refusal."""
    f, maps, tables = make(op, backend)
    args = (*(x[0] for x in maps), *tables)
    out = f(*args)
    # The result is a constant for grad.
    ours = grad(lambda x: (torch.no_grad()(f)(x, *args[1:]) * x.sum()).sum())(args[0])
    torch.testing.assert_close(ours, out.sum().expand_as(args[0]))
    several = vmap(f, in_dims=(0, *[None] * (len(args) - 1)))
    for off in (torch.no_grad, torch.inference_mode):
        torch.testing.assert_close(off()(several)(maps[0], *args[1:]), several(maps[0], *args[1:]))
        torch.testing.assert_close(off()(f)(*args), out, rtol=0, atol=0)
    if backend != "reference":
        for forward_mode in (
            torch.no_grad()(lambda: jvp(f, args, args)),
            lambda: jvp(torch.no_grad()(f), args, args),
        ):
            with pytest.raises(RuntimeError, match="has no forward-mode derivatives"):
                forward_mode()
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(args[0], args[0])
            with pytest.raises(RuntimeError, match="has no forward-mode derivatives"):
                f(dual, *args[1:])


@cases
def test_gradients_of_several_cotangents_at_once(op, backend):
    """PyTorch runs the backward pass under vmap, without autograd."""
    f, maps, tables = make(op, backend)
    leaves = [x.clone().requires_grad_() for x in (*(x[0] for x in maps), *tables)]
    out = f(*leaves)
    cotangents = torch.stack([torch.ones_like(out), out.detach()])
    ours = torch.autograd.grad(out, leaves, cotangents, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(out, leaves, c, retain_graph=True) for c in cotangents]
    for x, *expected in zip(ours, *each, strict=True):
        torch.testing.assert_close(x, torch.stack(expected))


@cases
def test_shapes_without_numbers(op, backend, monkeypatch):
    """Meta tensors, and the fake ones of an exporter, with a backend named by the environment."""
    monkeypatch.setenv("MMLOCAL_BACKEND", backend)
    f, maps, tables = make(op, None)
    args = (*(x[0] for x in maps), *tables)
    expected = f(*args)
    meta = f(*(x.to("meta").requires_grad_() for x in args))
    assert meta.is_meta
    assert meta.shape == expected.shape
    meta.sum().backward()

    class Op(nn.Module):
        def forward(self, *tensors):
            return f(*tensors)

    (node,) = [n for n in torch.export.export(Op(), args).graph.nodes if n.op == "output"]
    assert node.args[0][0].meta["val"].stride() == expected.stride()


# Batch, height and width. PyTorch itself compiles again for a batch of 1, and where the first map
# was square.
SIZES = [(2, 9, 7), (3, 14, 14), (2, 7, 56), (2, 28, 20), (4, 5, 6), (2, 13, 13), (3, 8, 9)]


def times_compiled(function, inputs) -> int:
    torch.compiler.reset()
    graphs = []

    @functools.partial(torch.compile, fullgraph=True, dynamic=True, backend=lambda graph, _: (
        graphs.append(graph) or graph))  # fmt: skip
    def compiled(*tensors):
        return function(*tensors)

    for size in SIZES:
        compiled(*inputs(*size))
    return len(graphs)


def test_seven_sizes_compile_once():
    zeros = torch.zeros
    elsa = functools.partial(elsa_attention, ghost_add=zeros(4, 3, 3), kernel_size=3, dilation=2)
    qna = functools.partial(qna_attention, num_queries=2, kernel_size=3, stride=2, padding=1)
    conv = nn.Conv2d(4, 4, 3)
    assert times_compiled(conv, lambda b, h, w: [zeros(b, 4, h, w)]) == 1, "the measure"
    assert times_compiled(elsa, lambda b, h, w: [zeros(b, 4, h, w), zeros(b, 18, h, w)]) == 1
    assert times_compiled(qna, lambda b, h, w: [zeros(b, 4, h, w), zeros(b, 4, h, w)]) == 1


@pytest.mark.parametrize("layer", [ELSA, QnA])
def test_seven_sizes_compile_a_layer_once(layer):
    module = layer(16, 4, kernel_size=3)
    assert times_compiled(module, lambda b, h, w: [torch.zeros(b, h, w, 16)]) == 1


def calls():
    """Good calls of both ops, as keywords."""
    x = torch.randn(2, 4, 5, 6)
    yield elsa_attention, dict(value=x, attn=torch.randn(2, 18, 5, 6), kernel_size=3)
    yield qna_attention, dict(value=x, scores=torch.randn(2, 4, 5, 6), num_queries=2, kernel_size=3)


@pytest.mark.parametrize("backend", [None, *dict.fromkeys(name for _, name in CASES)])
def test_absurd_steps_mean_only_the_own_pixel(backend):
    """A ``dilation`` or ``stride`` beyond the map cannot overflow, nor ask for memory."""
    for op, call in calls():
        name = "dilation" if op is elsa_attention else "stride"
        results = []
        for step in (50, 10**6, 2**62, 2**70):
            tensors = {n: x.clone().requires_grad_() for n, x in call.items() if n[-4:] != "size"
                       and isinstance(x, torch.Tensor)}  # fmt: skip
            out = op(**call | tensors, **{name: step}, backend=backend)
            results.append([out, *torch.autograd.grad(out.sum(), list(tensors.values()))])
        for other in results[1:]:
            assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_calls_that_no_backend_sees():
    for op, call in calls():
        second = "attn" if op is elsa_attention else "scores"
        on_meta = call | {second: call[second].to("meta")}
        for changes, error, message in [
            (on_meta, ValueError, rf"{second} must be on the device of value \(cpu\), got meta"),
            (call | {"kernel_size": 3.0}, TypeError, r"kernel_size must be an int, got 3.0 \(flo"),
            (call | {"kernel_size": True}, TypeError, r"kernel_size must be an int, got True"),
            (call | {"value": [1.0]}, TypeError, "value must be a tensor, got list"),
            (call | {second: None}, TypeError, f"{second} must be a tensor, got NoneType"),
        ]:
            with pytest.raises(error, match=message):
                op(**changes)
    op, call = next(calls())
    for name, number in (("lam", math.nan), ("gamma", math.inf), ("lam", -math.inf)):
        with pytest.raises(ValueError, match=f"{name} must be a finite number, got {number}"):
            op(**call, **{name: number})


def test_symbolic_trace_says_what_to_use():
    class Op(nn.Module):
        def __init__(self, op, **settings):
            super().__init__()
            self.op, self.settings = op, settings

        def forward(self, first, second):
            return self.op(first, second, **self.settings)

    for op, call in calls():
        settings = {n: x for n, x in call.items() if not isinstance(x, torch.Tensor)}
        with pytest.raises(TypeError, match=r"symbolic_trace .*; use torch.export.export"):
            torch.fx.symbolic_trace(Op(op, **settings))


@pytest.mark.parametrize("name", ["lam", "gamma"])
def test_factors_that_are_no_numbers(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got '1'"):
        elsa_attention(torch.ones(1, 1, 2, 2), torch.ones(1, 9, 2, 2), kernel_size=3, **{name: "1"})

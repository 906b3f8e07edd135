"""The QnA op: its definition, its backends against the definition, and how it meets PyTorch."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import FLOATS, leaves, make_cotangent, peak_memory, restride, running, worst_error
from cases import make_qna as make
from cases import run as run_op
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from mmlocal.ops import eager_common, qna_attention
from mmlocal.ops.backends import Backend
from mmlocal.ops.qna import BACKENDS as ALL_BACKENDS
from mmlocal.ops.qna import attention_maps, output_size

run = functools.partial(run_op, qna_attention)
BACKENDS = running(ALL_BACKENDS)
NAMES = [b.name for b in BACKENDS]
FAST = [b for b in BACKENDS if b.name != "reference"]
INF = float("inf")
# (rel_pos, tap_weight): which tables there are
TABLES = [(False, False), (True, False), (False, True), (True, True)]
SHAPES = [
    # batch, heads, channels per head, height, width, kernel, stride, padding, queries
    (1, 1, 1, 1, 1, 1, 1, 0, 1),
    (1, 1, 2, 1, 1, 3, 1, 1, 2),  # one token
    (2, 2, 1, 1, 1, 3, 1, 2, 3),  # one token in each of nine windows
    (2, 3, 2, 1, 5, 3, 2, 1, 2),
    (1, 3, 2, 2, 6, 7, 1, 3, 2),  # height below the kernel
    (2, 1, 3, 9, 4, 5, 1, 2, 1),  # width below the kernel
    (1, 2, 2, 7, 7, 7, 1, 0, 3),  # equal: one window
    (1, 1, 4, 8, 6, 7, 1, 3, 2),  # one above, one below
    (1, 2, 2, 4, 5, 3, 2, 0, 2),  # stride leaves a row out
    (2, 2, 2, 6, 5, 2, 1, 0, 2),  # even kernels
    (1, 2, 2, 7, 9, 4, 2, 1, 2),
    (1, 3, 2, 5, 8, 2, 3, 1, 3),  # stride above the kernel: some tokens in no window
    (2, 2, 2, 11, 10, 3, 3, 2, 2),
    (1, 2, 2, 8, 13, 5, 2, 2, 1),
    (2, 2, 4, 17, 23, 7, 1, 3, 2),  # no multiples of anything
    (0, 3, 2, 5, 6, 3, 1, 1, 2),  # empty batch
]
SMALL = [
    (2, 2, 2, 3, 4, 3, 1, 1, 2),
    (1, 1, 2, 5, 4, 3, 2, 1, 3),
    (1, 2, 1, 4, 3, 2, 1, 0, 2),
    (1, 1, 1, 5, 4, 2, 3, 1, 1),
]


def shape_id(shape: tuple) -> str:
    b, n, c, h, w, k, s, p, q = shape
    return f"B{b}-heads{n}-C{n * c}-{h}x{w}-k{k}-s{s}-p{p}-L{q}"


def tables_id(tables: tuple) -> str:
    return "".join(name for name, there in zip(("R", "W"), tables, strict=True) if there) or "plain"


over_tables = pytest.mark.parametrize("tables", TABLES, ids=tables_id)
over_sums = pytest.mark.parametrize("sum_queries", [True, False], ids=["sum", "each"])


def check_tolerance(backend: Backend, tensors: dict, settings: dict, **kwargs) -> None:
    """Against the definition in float64 on the same (rounded) numbers."""
    dtype = tensors["value"].dtype
    exact = leaves(tensors, torch.float64)
    expected = run(exact, settings, **kwargs, backend="reference")
    ours = run(tensors, settings, **kwargs, backend=backend.name)
    assert all(x.dtype == dtype for x in ours.values())
    assert worst_error(ours, expected) <= backend.atol[dtype]


def naive(tensors: dict, settings: dict) -> torch.Tensor:
    """The equations of the docstring, one number at a time; per query."""
    batch, channels, height, width = tensors["value"].shape
    heads = tensors["scores"].shape[1] // settings["num_queries"]
    k, stride, padding = (settings[name] for name in ("kernel_size", "stride", "padding"))
    value, scores, rel_pos, tap_weight = (
        tensors[name].tolist() if name in tensors else None
        for name in ("value", "scores", "rel_pos", "tap_weight")
    )
    rows, cols = ((n + 2 * padding - k) // stride + 1 for n in (height, width))
    out = torch.empty(batch, settings["num_queries"], channels, rows, cols, dtype=torch.float64)
    for b, q, c, y, x in itertools.product(*map(range, out.shape)):
        table = q * heads + c // (channels // heads)
        total, mixed = 0.0, 0.0
        for i, j in itertools.product(range(k), range(k)):
            yy, xx = y * stride + i - padding, x * stride + j - padding
            if not (0 <= yy < height and 0 <= xx < width):
                continue
            bias = rel_pos[table][i][j] if rel_pos else 0.0
            exp = math.exp(scores[b][table][yy][xx] + bias)
            total += exp
            mixed += (tap_weight[table][i][j] if tap_weight else 1.0) * exp * value[b][c][yy][xx]
        out[b, q, c, y, x] = mixed / total
    return out


@pytest.mark.parametrize("backend", NAMES)
@over_tables
@pytest.mark.parametrize("shape", SMALL, ids=shape_id)
def test_equation(shape, tables, backend):
    tensors, settings = make(shape, tables)
    with torch.no_grad():
        expected = naive(tensors, settings)
        each = qna_attention(**tensors, **settings, sum_queries=False, backend=backend)
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-13)
        out = qna_attention(**tensors, **settings, backend=backend)
        torch.testing.assert_close(out, expected.sum(dim=1), rtol=0, atol=1e-13)


def official(
    value, scores, rel_pos=None, tap_weight=None, *, num_queries, kernel_size, stride, padding
):
    """The official code: two depth-wise convolutions of the exponentials, per query."""
    batch, channels = value.shape[:2]
    tables, per_head = scores.shape[1], channels * num_queries // scores.shape[1]
    ones = value.new_ones(tables, kernel_size, kernel_size)
    denominator = ones if rel_pos is None else rel_pos.exp()
    numerator = denominator if tap_weight is None else denominator * tap_weight
    exp = scores.exp().repeat_interleave(per_head, dim=1)
    mixed = F.conv2d(
        exp * value.repeat(1, num_queries, 1, 1),
        numerator.repeat_interleave(per_head, dim=0)[:, None],
        stride=stride,
        padding=padding,
        groups=exp.shape[1],
    )
    total = F.conv2d(
        exp,
        denominator.repeat_interleave(per_head, dim=0)[:, None],
        stride=stride,
        padding=padding,
        groups=exp.shape[1],
    )
    return (mixed / total).view(batch, num_queries, channels, *mixed.shape[2:])


@pytest.mark.parametrize("backend", NAMES)
@over_tables
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0]], ids=shape_id)
def test_formula_of_the_official_code(shape, tables, backend):
    """Values and gradients, where its exponentials are finite."""
    tensors, settings = make(shape, tables)
    out = official(**tensors, **settings)
    for sum_queries, expected in ((False, out), (True, out.sum(dim=1))):
        grads = torch.autograd.grad(
            expected, list(tensors.values()), make_cotangent(expected), retain_graph=True
        )
        expected = {"out": expected.detach()} | {
            f"grad of {n}": g for n, g in zip(tensors, grads, strict=True)
        }
        ours = run(tensors, settings, sum_queries=sum_queries, backend=backend)
        assert worst_error(ours, expected) < 1e-12


@pytest.mark.parametrize("backend", NAMES)
@over_sums
@pytest.mark.parametrize("tables", [(True, True), (False, False)], ids=tables_id)
@pytest.mark.parametrize(
    "shape",
    [(1, 2, 1, 3, 2, 3, 1, 1, 2), (1, 1, 2, 4, 3, 2, 2, 1, 2), (1, 1, 1, 3, 4, 2, 1, 0, 3)],
    ids=shape_id,
)
def test_gradcheck(shape, tables, sum_queries, backend):
    tensors, settings = make(shape, tables)
    names = list(tensors)

    def op(*args):
        tensors = dict(zip(names, args, strict=True))
        return qna_attention(**tensors, **settings, sum_queries=sum_queries, backend=backend)

    assert gradcheck(op, tuple(tensors.values()), raise_exception=True)


@pytest.mark.parametrize("tables", [(True, True), (False, False)], ids=tables_id)
def test_second_derivatives_of_reference(tables):
    tensors, settings = make((1, 1, 1, 2, 3, 2, 1, 1, 2), tables)

    def op(*args):
        tensors_ = dict(zip(tensors, args, strict=True))
        return qna_attention(**tensors_, **settings, backend="reference")

    assert gradgradcheck(op, tuple(tensors.values()))


@pytest.mark.parametrize("backend", [b.name for b in FAST])
def test_second_derivatives_are_refused_elsewhere(backend):
    """Never a wrong number in silence."""
    tensors, settings = make((1, 1, 2, 3, 3, 3, 1, 1, 2))
    out = qna_attention(**tensors, **settings, backend=backend)
    (grad,) = torch.autograd.grad(out.square().sum(), tensors["value"], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
def test_backend_holds_its_tolerance(backend, shape, dtype):
    for tables, sum_queries in itertools.product(TABLES, (True, False)):
        tensors, settings = make(shape, tables, dtype)
        check_tolerance(backend, tensors, settings, sum_queries=sum_queries)


def extreme(kind: str, scores: torch.Tensor) -> torch.Tensor:
    """Scores at which the exponentials of the official code overflow or vanish."""
    largest = torch.finfo(scores.dtype).max
    index = torch.arange(scores.numel()).view(scores.shape)
    signs = torch.where(index * 7 % 5 < 2, 1.0, -1.0).to(scores.dtype)
    out = scores.detach().clone()
    if kind == "mixed":  # what is left of N(0, 1) beside 1e4 counts as well
        return signs * 1e4 + out
    if kind == "two-levels":  # windows of the small ones alone, far below the largest of the map
        out[..., : out.shape[-1] // 2] -= 1e4
        out[..., out.shape[-1] // 2 :] += 1e4
        return out
    if kind.startswith("all"):
        return torch.full_like(out, {"all-high": 1e4, "all-low": -1e4}.get(kind, largest))
    if kind.startswith("spike"):
        out[..., out.shape[-2] // 2, out.shape[-1] // 2] = {"spike": 1e4, "spike-down": -1e4}[kind]
        return out
    if kind == "lowest":
        return torch.full_like(out, -largest)
    assert kind == "largest-and-lowest"
    return signs * largest


KINDS = ["mixed", "two-levels", "all-high", "all-low", "spike", "spike-down", "all-largest",
         "lowest", "largest-and-lowest"]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
def test_extreme_scores(backend, kind, dtype):
    """Within the same tolerance as any others, values and gradients."""
    for shape, tables in itertools.product(
        [(2, 2, 2, 6, 9, 3, 1, 1, 2), (1, 2, 2, 7, 6, 4, 2, 1, 2)], [(True, True), (False, False)]
    ):
        tensors, settings = make(shape, tables, dtype)
        tensors = leaves(tensors, scores=extreme(kind, tensors["scores"]))
        assert tensors["scores"].isfinite().all()
        for sum_queries in (True, False):
            check_tolerance(backend, tensors, settings, sum_queries=sum_queries)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_adding_to_all_scores_of_a_query_changes_nothing(dtype, backend):
    """The softmax ignores it. The numbers are exact in every dtype."""
    tensors, settings = make((2, 2, 2, 6, 5, 3, 1, 1, 2), dtype=dtype)
    tensors = leaves(tensors, scores=(tensors["scores"].detach() * 4).round())
    shifted = leaves(tensors, scores=tensors["scores"].detach() + 128)
    assert torch.equal(shifted["scores"] - 128, tensors["scores"])
    expected = run(tensors, settings, backend=backend)
    ours = run(shifted, settings, backend=backend)
    limit = next(b.atol[dtype] for b in BACKENDS if b.name == backend)
    assert worst_error(ours, expected) <= limit


@pytest.mark.parametrize("backend", NAMES)
def test_extreme_tables(backend):
    """Positions may differ by more than exponentials can hold, as may scores."""
    tensors, settings = make((1, 2, 2, 6, 7, 3, 1, 1, 2), dtype=torch.float32)
    for factor in (1e2, 1e4):
        changed = leaves(tensors, rel_pos=tensors["rel_pos"].detach() * factor)
        exact = leaves(changed, torch.float64)
        expected = run(exact, settings, backend="reference")
        # rel_pos itself is rounded to float32 when a score is added
        assert worst_error(run(changed, settings, backend=backend), expected) < 1e-7 * factor


def drop(tensors: dict, mask: torch.Tensor) -> dict:
    """The same with scores of -inf where ``mask`` is true."""
    return leaves(tensors, scores=tensors["scores"].detach().masked_fill(mask, -INF))


@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
@over_sums
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_masked_tokens(dtype, sum_queries, backend):
    """They contribute nothing, get no gradient, and the others share the attention."""
    tensors, settings = make((2, 2, 2, 7, 6, 3, 1, 1, 2), dtype=dtype)
    mask = torch.arange(42).view(7, 6) * 5 % 7 < 3
    masked = drop(tensors, mask)
    check_tolerance(backend, masked, settings, sum_queries=sum_queries)
    first = run(masked, settings, sum_queries=sum_queries, backend=backend.name)
    for name in ("value", "scores"):
        assert not first[f"grad of {name}"][..., mask].any()
        assert first[f"grad of {name}"][..., ~mask].any()
    other = leaves(masked, value=masked["value"].detach().masked_fill(mask, 1e3))
    second = run(other, settings, sum_queries=sum_queries, backend=backend.name)
    assert torch.equal(first["out"], second["out"])


@pytest.mark.parametrize("backend", NAMES)
@over_tables
def test_a_masked_border_is_no_border(tables, backend):
    """A map inside a larger one whose other tokens are masked: the same, to the last window."""
    tensors, settings = make((2, 2, 2, 6, 5, 3, 1, 1, 2), tables)
    expected = run(tensors, settings, backend=backend)
    inner = (..., slice(3, 9), slice(2, 7))
    value = torch.randn(2, 4, 11, 10, dtype=torch.float64)
    scores = torch.full((2, 4, 11, 10), -INF, dtype=torch.float64)
    value[inner], scores[inner] = tensors["value"].detach(), tensors["scores"].detach()
    large = leaves(tensors, value=value, scores=scores)
    out = qna_attention(**large, **settings, backend=backend)[inner]
    grads = torch.autograd.grad(out, list(large.values()), make_cotangent(out))
    ours = {"out": out.detach()}
    for name, grad in zip(large, grads, strict=True):
        ours[f"grad of {name}"] = grad[inner] if name in ("value", "scores") else grad
    assert worst_error(ours, expected) < 1e-13


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("backend", NAMES)
def test_windows_without_tokens_give_zero(backend, dtype):
    tensors, settings = make((2, 2, 2, 8, 9, 3, 2, 1, 2), dtype=dtype)
    mask = torch.zeros(8, 9, dtype=torch.bool)
    mask[:, :5] = True  # windows 0 and 1 of each row
    result = run(drop(tensors, mask), settings, backend=backend)
    assert not result["out"][..., :2].any()
    assert result["out"][..., 2:].all()
    assert all(x.isfinite().all() for x in result.values())
    everything = run(drop(tensors, torch.ones_like(mask)), settings, backend=backend)
    assert not any(x.any() for x in everything.values())
    # one query sees nothing, the other one everything
    one = run(drop(tensors, torch.tensor([True, True, False, False])[:, None, None]), settings,
              sum_queries=False, backend=backend)  # fmt: skip
    assert not one["out"][:, 0].any()
    assert one["out"][:, 1].all()
    assert not one["grad of rel_pos"][:2].any()
    assert one["grad of rel_pos"][2:].any()


@pytest.mark.parametrize("backend", NAMES)
def test_a_query_without_any_position_gives_zero(backend):
    tensors, settings = make((1, 2, 2, 5, 4, 3, 1, 1, 1))
    rel_pos = tensors["rel_pos"].detach().clone()
    rel_pos[1] = -INF
    out = qna_attention(**(tensors | {"rel_pos": rel_pos}), **settings, backend=backend)
    assert torch.equal(out[:, 2:], torch.zeros_like(out[:, 2:]))
    assert out[:, :2].all()


@pytest.mark.parametrize("backend", [b.name for b in FAST])
def test_stride_far_beyond_the_map(backend):
    tensors, settings = make((1, 2, 2, 5, 4, 3, 1, 1, 2))
    settings = settings | {"stride": 10**6}
    expected = run(tensors, settings, backend="reference")
    assert worst_error(run(tensors, settings, backend=backend), expected) < 1e-13


@pytest.mark.parametrize("backend", NAMES)
def test_tokens_outside_the_map_do_not_exist(backend):
    """Ones give what the taps weigh: 1 in every window without a table, at the border too."""
    tensors, settings = make((2, 2, 2, 5, 6, 5, 1, 4, 2), (True, False))
    ones = leaves(tensors, value=torch.ones_like(tensors["value"]))
    out = qna_attention(**ones, **settings, sum_queries=False, backend=backend)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", NAMES)
@over_sums
@over_tables
def test_stride_leaves_windows_out(tables, sum_queries, backend):
    """Strided outputs are every second or third one of those of stride 1."""
    tensors, settings = make((2, 2, 2, 11, 10, 3, 1, 1, 2), tables)
    full = qna_attention(**tensors, **settings, sum_queries=sum_queries, backend=backend)
    for stride in (2, 3):
        settings["stride"] = stride
        out = qna_attention(**tensors, **settings, sum_queries=sum_queries, backend=backend)
        torch.testing.assert_close(out, full[..., ::stride, ::stride], rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", NAMES)
@over_sums
def test_interior_is_shift_equivariant(sum_queries, backend):
    tensors, settings = make((1, 2, 2, 12, 13, 5, 1, 2, 2))
    moved = leaves(
        tensors, **{n: tensors[n].detach().roll((2, 3), (2, 3)) for n in ("value", "scores")}
    )
    out = qna_attention(**tensors, **settings, sum_queries=sum_queries, backend=backend)
    out_moved = qna_attention(**moved, **settings, sum_queries=sum_queries, backend=backend)
    torch.testing.assert_close(out_moved[..., 4:-2, 5:-2], out[..., 2:-4, 2:-5], rtol=0, atol=1e-14)
    assert not torch.allclose(out_moved[..., 2:, 3:], out[..., :-2, :-3], atol=1e-3)


def test_attention_maps():
    """Their definition sums to 1 over the tokens of a window, or to 0."""
    tensors, settings = make((2, 2, 2, 6, 5, 3, 2, 1, 3))
    scores = tensors["scores"].detach()
    scores[1] = -INF
    maps = attention_maps(scores, tensors["rel_pos"], *settings.values())
    assert maps.shape == (2, 3, 2, 9, 3, 3)
    torch.testing.assert_close(maps[0].sum(dim=2), torch.ones(3, 2, 3, 3, dtype=torch.float64))
    assert not maps[1].any()
    assert not maps[0, :, :, :3, 0].any()  # the first row of taps lies above the map
    assert attention_maps(scores.half(), None, *settings.values()).dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(7, 3, 1, 1), (7, 3, 2, 1), (8, 3, 2, 1), (7, 2, 3, 0), (1, 7, 2, 3)],
)
def test_output_size_is_that_of_a_convolution(size, kernel, stride, padding):
    image = torch.zeros(1, 1, size, size)
    expected = F.conv2d(image, torch.zeros(1, 1, kernel, kernel), stride=stride, padding=padding)
    assert output_size(size, kernel, stride, padding) == expected.shape[2]


def test_eager_works_sample_by_sample(monkeypatch):
    """A large batch on a CPU goes in chunks. Sums over the batch must include all of them."""
    tensors, settings = make((5, 2, 3, 6, 7, 3, 1, 1, 2))
    expected = run(tensors, settings, backend="reference")
    for samples in (1, 2, 5):
        padded = tensors["value"].shape[1] * 8 * 9
        monkeypatch.setattr(eager_common, "CPU_CHUNK", samples * padded)
        assert worst_error(run(tensors, settings, backend="eager"), expected) < 5e-15


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("layout", ["channels-last", "sliced", "transposed", "expanded"])
def test_memory_layouts(layout, backend):
    tensors, settings = make((2, 3, 2, 6, 5, 3, 2, 1, 2))

    changed = {n: restride(x, layout).requires_grad_() for n, x in tensors.items()}
    assert not changed["value"].is_contiguous()
    assert not changed["scores"].is_contiguous()
    expected = run({n: x.detach().contiguous().requires_grad_() for n, x in changed.items()},
                   settings, backend="reference")  # fmt: skip
    assert worst_error(run(changed, settings, backend=backend), expected) < 1e-13


@pytest.mark.parametrize("backend", NAMES)
def test_mixed_dtypes(backend):
    """As in mixed precision: activations in bfloat16, parameters in float32."""
    tensors, settings = make((2, 3, 2, 6, 5, 3, 1, 1, 2))
    dtypes = dict.fromkeys(tensors, torch.float32) | {"value": torch.bfloat16}
    mixed = {n: x.detach().to(dtypes[n]).requires_grad_() for n, x in tensors.items()}
    expected = run(leaves(mixed, torch.float64), settings, backend="reference")
    ours = run(mixed, settings, backend=backend)
    assert ours["out"].dtype == torch.bfloat16
    assert {n: ours[f"grad of {n}"].dtype for n in mixed} == dtypes
    assert worst_error(ours, expected) < 8e-3


@pytest.mark.parametrize("backend", NAMES)
@over_sums
def test_autocast_does_not_touch_the_op(sum_queries, backend):
    """It accumulates in float32 whatever surrounds it, and returns the dtype of ``value``."""
    tensors, settings = make((2, 3, 2, 6, 5, 3, 1, 1, 2), dtype=torch.float32)
    expected = run(tensors, settings, sum_queries=sum_queries, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(tensors, settings, sum_queries=sum_queries, backend=backend)
    for name, x in expected.items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], x), name


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("tables", TABLES[1:], ids=tables_id)
def test_any_subset_of_inputs_may_be_frozen(tables, backend):
    tensors, settings = make((2, 3, 2, 5, 4, 3, 1, 1, 2), tables)
    full = run(tensors, settings, backend=backend)
    for count in range(1, len(tensors)):
        for live in itertools.combinations(tensors, count):
            part = {n: x.detach().requires_grad_(n in live) for n, x in tensors.items()}
            grads = run(part, settings, backend=backend)
            assert set(grads) == {"out", *(f"grad of {n}" for n in live)}
            assert worst_error(grads, {k: full[k] for k in grads}) < 1e-13
    with torch.no_grad():
        assert not qna_attention(**tensors, **settings, backend=backend).requires_grad


@pytest.mark.parametrize("backend", NAMES)
def test_inputs_are_left_alone(backend):
    """Also where nothing has to be padded or converted."""
    for padding in (0, 1):
        tensors, settings = make((2, 2, 2, 5, 4, 3, 1, padding, 2))
        before = {n: x.detach().clone() for n, x in tensors.items()}
        result = run(tensors, settings, backend=backend)
        assert all(torch.equal(x, before[n]) for n, x in tensors.items())
        assert all(
            x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
            for x, y in itertools.product(result.values(), tensors.values())
        )


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.deterministic], ids=lambda b: b.name)
def test_two_runs_are_bit_equal(backend):
    tensors, settings = make((2, 3, 4, 17, 23, 7, 2, 3, 2), dtype=torch.float32)
    first = run(tensors, settings, backend=backend.name)
    torch.use_deterministic_algorithms(True)
    try:
        second = run(tensors, settings, backend=backend.name)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, second[n]) for n, x in first.items())


@pytest.mark.parametrize("backend", [b.name for b in FAST])
@over_sums
@pytest.mark.parametrize("tables", [(True, True), (False, True)], ids=tables_id)
def test_opcheck(tables, sum_queries, backend):
    """Schema, fake tensors (shapes *and* strides), autograd registration, AOT autograd."""
    for shape, layout in [
        ((2, 3, 2, 6, 5, 3, 2, 1, 2), torch.channels_last),
        ((1, 1, 2, 5, 4, 2, 1, 0, 1), torch.contiguous_format),
    ]:
        tensors, settings = make(shape, tables, torch.float32)
        value = tensors["value"].detach().contiguous(memory_format=layout).requires_grad_()
        args = [tensors.get(n) for n in ("scores", "rel_pos", "tap_weight")]
        args += [*settings.values(), sum_queries, backend]
        torch.library.opcheck(torch.ops.mmlocal.qna_attention, (value, *args))
        # AOT autograd only compares values, so hold the strides of the backward op on its own.
        frozen = [x.detach() if isinstance(x, torch.Tensor) else x for x in (value, *args)]
        grad = torch.ones_like(torch.ops.mmlocal.qna_attention(*frozen))
        needs = [x is not None for x in frozen[:4]]
        for keep in ({0, 1, 2, 3}, {0}, {1}, {2, 3}):
            needed = [need and i in keep for i, need in enumerate(needs)]
            torch.library.opcheck(torch.ops.mmlocal.qna_attention_backward, (grad, *frozen, needed))


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
        return qna_attention(
            **tensors, num_queries=2, kernel_size=3, stride=2, padding=1, backend=backend
        )

    for shape in [(2, 3, 2, 6, 5, 3, 2, 1, 2), (2, 3, 2, 9, 7, 3, 2, 1, 2)]:
        tensors, settings = make(shape, dtype=torch.float32)
        expected = run(tensors, settings, backend=backend)
        out = compiled(**tensors)
        grads = torch.autograd.grad(out, list(tensors.values()), make_cotangent(out))
        ours = {"out": out.detach()} | {
            f"grad of {n}": g for n, g in zip(tensors, grads, strict=True)
        }
        assert worst_error(ours, expected) < 1e-5


def test_dynamic_shapes_need_one_graph():
    """Batch and map may change, as in detection."""
    torch.compiler.reset()

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager", dynamic=True)
    def compiled(value, scores):
        return qna_attention(value, scores, num_queries=2, kernel_size=3, stride=2, padding=1)

    for batch, *size in [(2, 8, 5), (3, 9, 7), (5, 13, 22)]:
        tensors, settings = make((batch, 3, 2, *size, 3, 2, 1, 2), (False, False), torch.float32)
        with torch.compiler.set_stance("default" if batch == 2 else "fail_on_recompile"):
            out = compiled(**tensors)
        assert torch.equal(out, qna_attention(**tensors, **settings))


def test_compile_under_autocast():
    """Inputs that autocast made bfloat16, as in a mixed-precision model."""
    torch.compiler.reset()
    tensors, settings = make((1, 2, 2, 5, 4, 3, 1, 1, 2), dtype=torch.float32)

    def step(value, weight, scores, rel_pos, tap_weight):
        with torch.autocast("cpu", torch.bfloat16):
            value = nn.functional.conv2d(value, weight)
            return qna_attention(value, scores, rel_pos, tap_weight, **settings)

    weight = torch.eye(4)[:, :, None, None].requires_grad_()
    args = (tensors["value"], weight, *list(tensors.values())[1:])
    plain = step(*args)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*args)
    assert plain.dtype == compiled.dtype == torch.bfloat16
    assert torch.equal(plain, compiled)
    compiled.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", [b.name for b in FAST])
@over_sums
def test_export_is_one_node(sum_queries, backend):
    class Op(nn.Module):
        def forward(self, value, scores, tap_weight):
            return qna_attention(
                value,
                scores,
                None,
                tap_weight,
                num_queries=2,
                kernel_size=3,
                sum_queries=sum_queries,
                backend=backend,
            )

    tensors, _ = make((2, 2, 2, 6, 5, 3, 1, 0, 2), (False, True), torch.float32)
    args = tuple(x.detach() for x in tensors.values())
    program = torch.export.export(Op(), args)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert [t for t in targets if "qna" in t] == ["mmlocal.qna_attention.default"]
    assert torch.equal(program.module()(*args), Op()(*args))


def extra_memory(backend: str, k: int, sum_queries: bool, side: int) -> tuple[int, int, int]:
    """Bytes of ``value``, and of what the forward and the backward pass hold at once beside the
    op's inputs and outputs."""
    tensors, settings = make((1, 2, 16, side, side, k, 1, k // 2, 2), dtype=torch.float32)
    settings["sum_queries"] = sum_queries
    size = {name: x.numel() * x.element_size() for name, x in tensors.items()}
    outs = []

    def forward():
        outs.append(qna_attention(**tensors, **settings, backend=backend))

    def backward():
        return torch.autograd.grad(outs, list(tensors.values()), cotangent)

    forward_peak = peak_memory(forward)
    cotangent = torch.ones_like(outs[0])
    backward_peak = peak_memory(backward)
    return (
        size["value"],
        forward_peak - cotangent.numel() * cotangent.element_size(),
        backward_peak - sum(size.values()),
    )


@pytest.mark.parametrize("backend", NAMES)
@over_sums
def test_memory_does_not_grow_with_the_window(sum_queries, backend):
    """What the tokens cost, as a multiple of ``value``: from two maps, so that constants (the
    tables) drop out. What is left of the window is the padding of the map."""
    cost = {}
    for k in (3, 7, 11):
        small = extra_memory(backend, k, sum_queries, side=32)
        large = extra_memory(backend, k, sum_queries, side=64)
        value, *steps = (b - a for a, b in zip(small, large, strict=True))
        cost[k] = [round(step / value, 1) for step in steps]
    print(f"memory of {backend}: {cost} (kernel: [forward, backward] in maps)")
    if backend == "reference":
        assert min(cost[11]) > 100  # what the others must not do
    else:
        assert max(max(steps) for steps in cost.values()) < 9


def _bad(**changes):
    tensors = {
        "value": torch.zeros(2, 6, 5, 4),
        "scores": torch.zeros(2, 6, 5, 4),
        "rel_pos": torch.zeros(6, 3, 3),
        "tap_weight": torch.zeros(6, 3, 3),
    }
    return tensors | {"num_queries": 2, "kernel_size": 3} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_queries": 0}, ValueError, "num_queries must be at least 1, got 0"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": -3}, ValueError, "kernel_size must be at least 1, got -3"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"padding": -1}, ValueError, "padding must be 0 to kernel_size - 1 = 2, got -1"),
        ({"padding": 3}, ValueError, "padding must be 0 to kernel_size - 1 = 2, got 3"),
        ({"value": torch.zeros(6, 5, 4)}, ValueError, r"value must have .* got \(6, 5, 4\)"),
        ({"sum_queries": 2}, TypeError, "sum_queries must be True or False, got 2"),
        ({"scores": torch.zeros(6, 5, 4)}, ValueError, r"scores must have .* got \(6, 5, 4\)"),
        ({"value": torch.zeros(2, 0, 5, 4)}, ValueError, r"one channel .* got \(2, 0, 5, 4\)"),
        (
            {"value": torch.zeros(2, 6, 5, 4, dtype=torch.uint8)},
            TypeError,
            "value must be floating point, got torch.uint8",
        ),
        (
            {"scores": torch.zeros(2, 6, 5, 4, dtype=torch.int64)},
            TypeError,
            "scores must be floating point, got torch.int64",
        ),
        (
            {"rel_pos": torch.zeros(6, 3, 3, dtype=torch.complex64)},
            TypeError,
            "rel_pos must be floating point, got torch.complex64",
        ),
        (
            {"tap_weight": torch.zeros(6, 3, 3, dtype=torch.bool)},
            TypeError,
            "tap_weight must be floating point, got torch.bool",
        ),
        ({"scores": torch.zeros(2, 5, 5, 4)}, ValueError, r"scores .* multiple of 2\), got 5"),
        ({"scores": torch.zeros(2, 0, 5, 4)}, ValueError, r"scores .* multiple of 2\), got 0"),
        ({"scores": torch.zeros(2, 8, 5, 4)}, ValueError, "value .* heads=4 channels, got 6"),
        ({"scores": torch.zeros(1, 6, 5, 4)}, ValueError, r"scores must .*, got \(1, 6, 5, 4\)"),
        ({"scores": torch.zeros(2, 6, 4, 5)}, ValueError, r"scores must .*, got \(2, 6, 4, 5\)"),
        (
            {"value": torch.zeros(2, 6, 5, 2), "scores": torch.zeros(2, 6, 5, 2)},
            ValueError,
            "value must be at least one window of kernel_size=3 with padding=0, got .* 5x2",
        ),
        (
            {"value": torch.zeros(2, 6, 0, 4), "scores": torch.zeros(2, 6, 0, 4), "padding": 1},
            ValueError,
            r"at least one channel and one pixel, got \(2, 6, 0, 4\)",
        ),
        (
            {"rel_pos": torch.zeros(2, 3, 3)},
            ValueError,
            r"rel_pos must have shape .* \(6, 3, 3\), got \(2, 3, 3\)",
        ),
        (
            {"tap_weight": torch.zeros(6, 9)},
            ValueError,
            r"tap_weight must have shape .* \(6, 3, 3\), got \(6, 9\)",
        ),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*eager, reference, got 'cuda'"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_bad_input(changes, error, message):
    qna_attention(**_bad())
    with pytest.raises(error, match=message):
        qna_attention(**_bad(**changes))

"""Every backend of this machine against the definition in float64, on random calls.

The environment variable ``MMLOCAL_RANDOM_PROBLEMS`` sets how many of each op,
``MMLOCAL_RANDOM_SEED`` the first seed: thousands find what these few do not.
"""

import functools
import os

import pytest
import torch
from random_problems import MAKE, Problem, backends_of, differences, make_problem

from mmlocal.ops import OPS

COUNT = int(os.environ.get("MMLOCAL_RANDOM_PROBLEMS", 120))
FIRST = int(os.environ.get("MMLOCAL_RANDOM_SEED", 0))
CASES = [
    (op, backend)
    for op in MAKE
    for backend in backends_of(op)
    if backend.name not in ("reference", "triton") and not backend.unavailable_reason()
]
cases = pytest.mark.parametrize(("op", "backend"), CASES, ids=[f"{o}-{b.name}" for o, b in CASES])
HAND_WRITTEN = [(op, backend) for op, backend in CASES if op in ("elsa", "qna")]
elsa_and_qna = pytest.mark.parametrize(
    ("op", "backend"), HAND_WRITTEN, ids=[f"{o}-{b.name}" for o, b in HAND_WRITTEN]
)


def test_each_op_has_random_problems():
    missing = set(OPS) - set(MAKE)
    assert not missing, f"MAKE in random_problems.py needs a generator for {', '.join(missing)}"


@functools.lru_cache(maxsize=COUNT)
def exact_results(op: str, seed: int) -> tuple[Problem, dict]:
    """A problem and the definition's results, which all backends of an op share."""
    problem = make_problem(op, seed)
    return problem, problem.run("reference", torch.float64)


@cases
def test_values_gradients_and_layouts(op, backend):
    found = []
    for seed in range(FIRST, FIRST + COUNT):
        problem, exact = exact_results(op, seed)
        found += [f"{problem}: {d}" for d in differences(problem, backend.name, exact)]
    assert found == []


@pytest.mark.parametrize("op", MAKE)
def test_the_problems_are_of_all_kinds(op):
    problems = [make_problem(op, seed) for seed in range(120)]
    assert {p.first.dtype for p in problems} == {
        torch.float64, torch.float32, torch.bfloat16, torch.float16,
    }  # fmt: skip
    spoiled = {p.notes.get("not finite") for p in problems}
    assert spoiled >= {None, "cotangent", *problems[0].tensors}
    assert any(len(p.live) < len(p.tensors) for p in problems)
    assert any(p.first.numel() == 0 for p in problems)


def test_large_positions_widen_the_tolerance():
    atol = OPS["qna"].backends[-1].atol[torch.float32]
    value = torch.zeros(1, 1, 1, 1)
    for position, factor in ((0, 1), (16, 1), (160, 10)):
        tensors = {"value": value, "rel_pos": torch.full((1, 1, 1), float(position))}
        problem = Problem("qna", 0, tensors, {}, [], value)
        assert problem.tolerance("reference", value) == pytest.approx(factor * atol)


@cases
def test_number_of_threads(op, backend):
    """Bit by bit the same where the backend says so."""
    if not backend.any_threads:
        pytest.skip(f"{backend.name} makes no promise")
    threads = torch.get_num_threads()
    for seed in range(10):
        problem = make_problem(op, seed, limit=20)
        results = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(problem.run(backend.name))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            for name, x in other.items():
                assert torch.equal(x.nan_to_num(), results[0][name].nan_to_num()), str(problem)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("number", [NAN, INF], ids=str)
@elsa_and_qna
def test_a_spoiled_score_stays_in_its_windows(op, backend, number):
    """One token of a map of 7x7: the outputs of the windows that hold it, and of its own head."""
    value, spoiled = torch.ones(1, 4, 7, 7), (0, 0, 3, 1)
    if op == "elsa":
        attn = torch.zeros(1, 2 * 9, 7, 7)
        attn[spoiled] = number
        out = OPS[op].function(value, attn, kernel_size=3, backend=backend.name)
        expected = torch.zeros(7, 7, dtype=torch.bool)
        expected[3, 1] = True
    else:
        scores = torch.zeros(1, 2, 7, 7)
        scores[spoiled] = number
        settings = dict(num_queries=1, kernel_size=3, padding=1)
        out = OPS[op].function(value, scores, **settings, backend=backend.name)
        expected = torch.zeros(7, 7, dtype=torch.bool)
        expected[2:5, 0:3] = True
    assert torch.equal(out[0, :2].isnan(), expected.expand(2, 7, 7))
    assert out[0, 2:].isfinite().all()


@pytest.mark.parametrize("number", [NAN, INF], ids=str)
@elsa_and_qna
def test_a_spoiled_table_is_not_read_outside_the_map(op, backend, number):
    """The first tap of a window lies outside the map for the first row and column."""
    value = torch.ones(1, 2, 5, 6)
    tables = torch.zeros(2, 3, 3)
    tables[:, 0, 0] = number
    if op == "elsa":
        attn, settings = torch.zeros(1, 18, 5, 6), dict(kernel_size=3)
        calls = [dict(ghost_mul=tables), dict(ghost_add=tables)]
    else:
        attn, settings = torch.zeros(1, 2, 5, 6), dict(num_queries=1, kernel_size=3, padding=1)
        calls = [dict(rel_pos=tables), dict(tap_weight=tables)]
    for call in calls:
        for name in (backend.name, "reference"):
            out = OPS[op].function(value, attn, **call, **settings, backend=name)[0]
            assert out[:, 0].isfinite().all()
            assert out[:, :, 0].isfinite().all()
            assert not out[:, 1:, 1:].isfinite().any()

"""Compare the Triton kernels with the definition in float64: values and all gradients."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from benchmarks.gpu.isolated import Item
from benchmarks.gpu.problems import Problem, big_problems, odd_problems, tiny_problems

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows or queries at the end of a big map that are compared.
_COMPARED = 4


def correctness_items(device: str, tiny: bool, tolerance: float) -> list[Item]:
    """List the checks of values and gradients, and of determinism.

    Args:
        device: device of the tensors.
        tiny: whether to take the sizes for Triton's interpreter.
        tolerance: factor of all tolerances.
    """
    problems = tiny_problems() if tiny else odd_problems()
    items = []
    for number, problem in enumerate(problems):
        dtypes = (_DTYPES[number % 3],) if tiny else _DTYPES
        for dtype in dtypes:
            call = partial(check, problem, dtype, device, number % 2 == 0, tolerance)
            items.append(Item(f"{problem.function}, {problem.name}, {_short(dtype)}", call))
    first = {problem.function: problem for problem in reversed(problems)}
    for problem in list(first.values())[: 2 if tiny else None]:
        call = partial(check_bits, problem, device, tolerance)
        items.append(Item(f"{problem.function}, {problem.name}, same bits", call))
    return items


def big_items(device: str, tiny: bool, tolerance: float) -> list[Item]:
    """List the checks of maps with more than 2**31 elements.

    Args:
        device: device of the tensors.
        tiny: whether to take the sizes for Triton's interpreter.
        tolerance: factor of all tolerances.
    """
    problems = big_problems(100, 1, 1) if tiny else big_problems(2**31, 16, 509)
    return [
        Item(f"{p.function}, {p.name}", partial(check_big, p, device, tolerance)) for p in problems
    ]


def check(
    problem: Problem, dtype: torch.dtype, device: str, channels_last: bool, tolerance: float
) -> Iterator[dict]:
    """Compare output and gradients with the definition in float64, on the same numbers.

    The tile of the first configuration runs, as it does where results must be deterministic. The
    checks of the benchmark run the measured ones.

    Args:
        problem: the call.
        dtype: data type of the tensors.
        device: device of the tensors.
        channels_last: whether maps are channels-last in memory.
        tolerance: factor of the tolerance.

    Yields:
        One row: ``passed``, ``errors`` by tensor, relative to its largest value, and ``limit``.
    """
    tensors, cotangent = problem.make(device, dtype, channels_last)
    with deterministic(True):
        ours = _results(problem, tensors, cotangent, "triton")
    exact = _exact(problem, tensors, cotangent)
    yield _compare(problem, dtype, ours, exact, tolerance)


def check_bits(problem: Problem, device: str, tolerance: float) -> Iterator[dict]:
    """Compare several runs bit by bit, with the measured configuration and with the first one.

    Args:
        problem: the call.
        device: device of the tensors.
        tolerance: factor of the tolerance.

    Yields:
        One row for each of both, as :func:`check`, with the ``differing`` tensors.
    """
    dtype = torch.float32
    tensors, cotangent = problem.make(device, dtype, channels_last=True)
    exact = _exact(problem, tensors, cotangent)
    for on in (False, True):
        with deterministic(on):
            first, *others = (_results(problem, tensors, cotangent, "triton") for _ in range(3))
        promised = set(first)
        if not on and not problem.backend.deterministic:
            promised.discard("gradient of value")  # a sum of atomic additions
        differing = [
            name for name in promised if not all(torch.equal(first[name], x[name]) for x in others)
        ]
        row = _compare(problem, dtype, first, exact, tolerance)
        row["passed"] &= not differing
        yield row | dict(differing=sorted(differing), deterministic_algorithms=on)


def check_big(problem: Problem, device: str, tolerance: float) -> Iterator[dict]:
    """Run a big map in float16, and compare its last rows with the definition.

    Args:
        problem: the call.
        device: device of the tensors.
        tolerance: factor of the tolerance.

    Yields:
        One row as :func:`check`, with ``elements``; or ``skipped``, if the memory is too small.
    """
    dtype = torch.float16
    if (needed := _needed_bytes(problem)) > (free := _free_bytes(device)):
        needs = f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free"
        yield dict(skipped=needs, elements=problem.elements)
        return
    live = [name for name in problem.shapes if name in problem.maps]
    tensors, cotangent = problem.make(device, dtype, channels_last=True)
    with deterministic(True):
        ours = _results(problem, tensors, cotangent, "triton", live)
    # Rows of a map, or queries.
    dim, size = 1, _COMPARED
    if problem.op != "deformable":
        dim, size = 2, _COMPARED + 2 * problem.settings["kernel_size"]

    def last(x: Tensor, size: int) -> Tensor:
        return x.narrow(dim, x.shape[dim] - size, size)

    part = {name: last(x, size) if name in live else x for name, x in tensors.items()}
    exact = _exact(problem, part, last(cotangent, size), live)
    ours, exact = ({n: last(x, _COMPARED) for n, x in r.items()} for r in (ours, exact))
    yield _compare(problem, dtype, ours, exact, tolerance) | dict(elements=problem.elements)


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Switch PyTorch's deterministic algorithms on or off for a block.

    Args:
        on: whether they are on.
    """
    if on:  # PyTorch refuses matrix products on a GPU without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _results(
    problem: Problem,
    tensors: dict[str, Tensor],
    cotangent: Tensor,
    backend: str,
    live: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Output, and gradients of the tensors in ``live``, or of all."""
    live = list(tensors) if live is None else live
    tensors = {n: x.detach().requires_grad_(n in live) for n, x in tensors.items()}
    out = problem.call(**tensors, **problem.settings, backend=backend)
    if problem.settings.get("border") == "mask":
        out = out.masked_fill(out == -math.inf, 7.0)  # -inf has no distance from -inf
    grads = torch.autograd.grad(out, [tensors[n] for n in live], cotangent)
    named = {f"gradient of {n}": g for n, g in zip(live, grads, strict=True)}
    return {"output": out.detach(), **named}


def _exact(
    problem: Problem,
    tensors: dict[str, Tensor],
    cotangent: Tensor,
    live: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """The same by the definition in float64."""
    tensors = {n: x.double() for n, x in tensors.items()}
    return _results(problem, tensors, cotangent.double(), "reference", live)


def _compare(
    problem: Problem,
    dtype: torch.dtype,
    ours: dict[str, Tensor],
    exact: dict[str, Tensor],
    tolerance: float,
) -> dict:
    limit = problem.backend.atol[dtype]
    if problem.function == "elsa_attention_projected" and dtype.itemsize == 2:
        limit *= 1.5  # the gradient of the logits is rounded, and what is made of it once more
    errors = {}
    for name, expected in exact.items():
        largest = expected.abs().max().item()
        error = (ours[name].double() - expected).abs().max().item()
        errors[name] = error / (largest if largest > 1e-12 else 1.0)
    passed = all(error <= tolerance * limit for error in errors.values())  # not for NaN
    texts = {name: x if math.isfinite(x) else str(x) for name, x in errors.items()}
    return dict(passed=passed, limit=limit, errors=texts)


def _needed_bytes(problem: Problem) -> int:
    """Inputs and output in float16, their gradients, and as much again for temporary tensors."""
    return 2 * 3 * sum(map(prod, (*problem.shapes.values(), problem.output_shape)))


def _free_bytes(device: str) -> float:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else math.inf


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

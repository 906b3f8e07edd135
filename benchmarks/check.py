"""Check that a backend meets its declared tolerance, before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.contestants import has_windows, make_tensors, op_function, op_tensors
from mmlocal.ops import OPS
from mmlocal.ops.backends import Backend
from mmlocal.ops.cases import Case

# Width and height in pixels of the corner that the check of a whole map compares.
_CORNER = 8
# Queries that the check of a whole map compares, for an op without windows.
_QUERIES = 48


class WrongResultError(Exception):
    """A backend misses its declared tolerance."""


def _results(function: Callable[..., Tensor], tensors: dict[str, Tensor], make) -> tuple:
    """Output and gradients by name, and the cotangent that gave the gradients."""
    out = function(**tensors)
    cotangent = make(*out.shape).detach()
    grads = torch.autograd.grad(out, list(tensors.values()), cotangent)
    names = (f"gradient of {name}" for name in tensors)
    return dict(zip(("output", *names), (out.detach(), *grads), strict=True)), cotangent


def _exact(case: Case, tensors: dict[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    """The results of ``reference`` for the same numbers in float64."""
    tensors = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    function = op_function(case, "reference")
    return _results(function, tensors, lambda *shape: cotangent.double())[0]


def _compare(
    ours: dict[str, Tensor],
    exact: dict[str, Tensor],
    backend: Backend,
    dtype: torch.dtype,
    where: str,
) -> None:
    for name, expected in exact.items():
        scale = expected.abs().max().item() or 1.0  # if all values are 0, the error is absolute
        error = (ours[name].double() - expected).abs().max().item() / scale
        if not error <= backend.atol[dtype]:  # True for NaN too
            raise WrongResultError(
                f"{where}, backend {backend.name}, {dtype}: {name} is off by {error:.1e} of its "
                f"largest value, but {backend.atol[dtype]:.1e} is allowed; nothing is timed"
            )


def _step(x: Tensor, case: Case) -> int:
    """Distance of the pixels of a map, in pixels of the case."""
    return 1 if x.shape[2:] == (case.height, case.width) else case.stride


def _last_queries(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut all tensors but the values, which come first, to the last queries of the last sample."""
    value, *_ = tensors
    return {name: x[-1:] if name == value else x[-1:, -_QUERIES:] for name, x in tensors.items()}


def check_backend(backend: Backend, case: Case, dtype: torch.dtype, device: torch.device) -> None:
    """Compare output and all gradients of a backend with ``reference`` in float64.

    The first comparison uses a small map with the same channels and at most ``2 * kernel_size + 8``
    pixels a side. In the second comparison, the backend runs on the whole map, and ``reference``
    runs only on the last corner and its surroundings. The backend ``reference`` itself skips the
    second comparison.

    Args:
        backend: backend to check.
        case: shape of the op.
        dtype: data type of all tensors.
        device: device that the backend runs on.

    An op without windows compares a small map and the last queries of the whole map instead.

    Raises:
        WrongResultError: an error is larger than the declared tolerance of the backend.
    """
    windows = has_windows(case.op)
    span = 2 * case.kernel_size + _CORNER if windows else _CORNER
    where = f"{case.op}, {case.name}"
    small = replace(
        case,
        batch=min(case.batch, 2),
        height=min(case.height, span),
        width=min(case.width, span - 1),
    )
    make = make_tensors(device, dtype)
    tensors = op_tensors(small, make)
    ours, cotangent = _results(op_function(small, backend.name), tensors, make)
    _compare(ours, _exact(small, tensors, cotangent), backend, dtype, f"{where}, small map")
    if backend.name == "reference":
        return

    tensors = op_tensors(case, make)
    ours, cotangent = _results(op_function(case, backend.name), tensors, make)
    if not windows:
        exact = _exact(case, _last_queries(tensors), cotangent[-1:, -_QUERIES:])
        # The gradient of the values sums over all queries.
        del exact[f"gradient of {next(iter(tensors))}"]
        compared = {name: x[-1:, -_QUERIES:] for name, x in ours.items()}
        _compare(compared, exact, backend, dtype, f"{where}, last queries")
        return
    # With a stride, the corner must start where a window of the map starts.
    first = [max(0, size - span) // case.stride * case.stride for size in (case.height, case.width)]
    corner = replace(case, batch=1, height=case.height - first[0], width=case.width - first[1])

    maps = {name for name, x in tensors.items() if x.dim() == 4 and name not in OPS[case.op].tables}

    def cut(x: Tensor) -> Tensor:
        step = _step(x, case)
        return x[-1:, :, first[0] // step :, first[1] // step :]

    exact = _exact(
        corner,
        {name: cut(x) if name in maps else x for name, x in tensors.items()},
        cut(cotangent),
    )
    # Gradients of tables sum over all pixels, so the corner has others.
    compared = {"output", *(f"gradient of {name}" for name in maps)}
    sizes = {
        name: max(1, _CORNER // _step(x, case)) for name, x in ours.items() if name in compared
    }

    def last(results: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: results[name][-1:, :, -n:, -n:] for name, n in sizes.items()}

    _compare(last(ours), last(exact), backend, dtype, f"{where}, last corner")

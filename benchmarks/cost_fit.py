"""Fit measured costs to powers of a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

# A smaller set of terms wins if it is this close to a larger one.
_TIE = 1e-9


@dataclass(frozen=True)
class Fit:
    """A sum of powers of a size, ``a + b * x`` or ``a + b * x + c * x ** 2``.

    Args:
        factors: power -> its factor. No factor is negative.
        worst: largest distance from a measured point, divided by the measured value.
    """

    factors: dict[int, float]
    worst: float

    def __call__(self, x: float) -> float:
        """Predict the cost of the size ``x``."""
        return sum(factor * x**power for power, factor in self.factors.items())


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Fit the exponent ``n`` of ``y = b * x ** n``, by least squares of the logarithms.

    Args:
        xs: sizes, positive, at least two different ones.
        ys: costs, positive.
    """
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (xs, ys))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def fit(xs: Sequence[float], ys: Sequence[float], powers: Sequence[int] = (0, 1)) -> Fit:
    """Fit costs to powers of a size, by least squares of the relative errors.

    A cost has no negative part, so a term whose factor would be negative is left out.

    Args:
        xs: sizes, positive.
        ys: costs, positive.
        powers: powers of the size, such as ``(0, 1)`` for a constant and a linear term.
    """
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (xs, ys))
    best, least = None, float("inf")
    for number in range(1, min(len(powers), len(xs)) + 1):
        for chosen in combinations(powers, number):
            scale = x.max()  # for well-conditioned columns
            terms = torch.stack([(x / scale) ** power / y for power in chosen], dim=1)
            factors = torch.linalg.lstsq(terms, torch.ones_like(y)[:, None]).solution[:, 0]
            error = float(((terms @ factors - 1) ** 2).sum())
            if (factors >= 0).all() and error < least - _TIE:
                found = (factors / scale ** torch.tensor(chosen)).tolist()
                best, least = dict(zip(chosen, found, strict=True)), error
    assert best is not None  # one term alone has a positive factor
    fitted = Fit(best, 0.0)
    worst = max(abs(fitted(a) / b - 1) for a, b in zip(xs, ys, strict=True))
    return Fit(best, worst)


def error_of_largest(
    xs: Sequence[float], ys: Sequence[float], powers: Sequence[int] = (0, 1)
) -> float:
    """Predict the largest size from the others, and compare.

    Args:
        xs: sizes, at least three.
        ys: costs.
        powers: powers of the size, as for :func:`fit`.

    Returns:
        Prediction over measured value, minus 1.
    """
    last = max(range(len(xs)), key=lambda i: xs[i])
    rest = [i for i in range(len(xs)) if i != last]
    fitted = fit([xs[i] for i in rest], [ys[i] for i in rest], powers)
    return fitted(xs[last]) / ys[last] - 1

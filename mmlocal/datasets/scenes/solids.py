"""Solids that a ray can meet: four unit solids, stretched and turned by a matrix.

A ray is ``origin + t * direction``. A linear map keeps ``t``, so a ray is taken into the frame of
the unit solid, and ``t`` of its entry there is ``t`` in the world.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

FLAT = 1e-12  # below it a number counts as zero


@dataclass(frozen=True)
class Solid:
    """A unit solid after a linear map and a shift.

    Args:
        kind: ``"ball"`` (radius 1), ``"box"`` (sides of 2), ``"cylinder"`` (radius 1, height 2) or
            ``"cone"`` (radius 1 at y = -1, tip at y = 1); each has its middle at 0.
        matrix: ``(3, 3)`` map from the unit solid to the world, in metres.
        centre: ``(3,)`` middle in the world, in metres.
    """

    kind: str
    matrix: np.ndarray
    centre: np.ndarray

    @cached_property
    def inverse(self) -> np.ndarray:
        """``(3, 3)`` map from the world to the unit solid."""
        return np.linalg.inv(self.matrix)

    @cached_property
    def half_sizes(self) -> np.ndarray:
        """``(3,)`` half lengths along the solid's own axes, in metres."""
        return np.linalg.norm(self.matrix, axis=0)

    @property
    def corners(self) -> np.ndarray:
        """``(8, 3)`` corners of a box around the solid, in the world."""
        signs = np.array(np.meshgrid((-1, 1), (-1, 1), (-1, 1))).reshape(3, 8).T
        return signs @ self.matrix.T + self.centre

    def enter(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Compute where rays that start outside enter the solid.

        Args:
            origins: ``(3,)`` or ``(N, 3)``.
            directions: ``(N, 3)``.

        Returns:
            ``(N,)`` values of t; infinity for rays that miss.
        """
        start = (origins - self.centre) @ self.inverse.T
        step = directions @ self.inverse.T
        with np.errstate(divide="ignore", invalid="ignore"):
            t = _ENTER[self.kind](np.broadcast_to(start, step.shape).T, step.T)
        return np.where(t > 0, t, np.inf)  # a NaN, too, is a miss

    def local(self, points: np.ndarray) -> np.ndarray:
        """Take points ``(N, 3)`` of the world into the frame of the unit solid."""
        return (points - self.centre) @ self.inverse.T

    def normals(self, points: np.ndarray) -> np.ndarray:
        """Compute the outward unit normals ``(N, 3)`` at points ``(N, 3)`` of the surface."""
        outward = _OUTWARD[self.kind](self.local(points).T).T @ self.inverse
        return outward / np.linalg.norm(outward, axis=1, keepdims=True)


def stretched(
    kind: str, half_sizes: tuple[float, float, float], centre: np.ndarray, turn: float = 0.0
) -> Solid:
    """Make an upright solid.

    Args:
        kind: name of the unit solid.
        half_sizes: half width, half height and half depth before the turn, in metres.
        centre: ``(3,)`` middle, in metres.
        turn: angle about the vertical, in radians.

    Returns:
        The solid.
    """
    return Solid(kind, turned(turn) * np.asarray(half_sizes), np.asarray(centre, dtype=float))


def between(
    kind: str, start: np.ndarray, end: np.ndarray, radius: float, turn: float = 0.0
) -> Solid:
    """Make a solid whose own y axis runs from one point to another, as a limb does.

    Args:
        kind: name of the unit solid.
        start: ``(3,)`` point at y = -1.
        end: ``(3,)`` point at y = 1.
        radius: half width and half depth in metres.
        turn: direction that the limb's own x axis is near to, an angle about the vertical.

    Returns:
        The solid.
    """
    along = (end - start) / 2
    upward = along / np.linalg.norm(along)
    forward = np.cross(turned(turn)[:, 0], upward)
    forward /= np.linalg.norm(forward)
    sideways = np.cross(upward, forward)
    matrix = np.stack([radius * sideways, along, radius * forward], axis=1)
    return Solid(kind, matrix, (start + end) / 2)


def turned(angle: float) -> np.ndarray:
    """Make the ``(3, 3)`` rotation about the vertical by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("in,in->n", a, b)


def _enter_ball(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    a, b, c = _dot(step, step), _dot(start, step), _dot(start, start) - 1
    return (-b - np.sqrt(b * b - a * c)) / a  # NaN for a miss


def _enter_box(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    low, high = (-1 - start) / step, (1 - start) / step
    near = np.minimum(low, high).max(axis=0)
    far = np.maximum(low, high).min(axis=0)
    return np.where(near <= far, near, np.inf)


def _enter_cylinder(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    side, dside = start[::2], step[::2]
    a, b, c = _dot(dside, dside), _dot(side, dside), _dot(side, side) - 1
    root = np.sqrt(b * b - a * c)
    low, high = (-1 - start[1]) / step[1], (1 - start[1]) / step[1]
    near = np.maximum((-b - root) / a, np.minimum(low, high))
    far = np.minimum((-b + root) / a, np.maximum(low, high))
    return np.where(near <= far, near, np.inf)


def _enter_cone(start: np.ndarray, step: np.ndarray) -> np.ndarray:
    # The side is x^2 + z^2 = ((1 - y) / 2)^2 for -1 <= y <= 1, the base is y = -1.
    width, dwidth = (1 - start[1]) / 2, -step[1] / 2
    side, dside = start[::2], step[::2]
    a = _dot(dside, dside) - dwidth * dwidth
    b = _dot(side, dside) - width * dwidth
    c = _dot(side, side) - width * width
    root = np.sqrt(b * b - a * c)
    best = np.full(len(a), np.inf)
    for t in ((-b - root) / a, (-b + root) / a):
        on = (np.abs(start[1] + t * step[1]) <= 1) & (t > 0) & (t < best)
        best[on] = t[on]
    t = (-1 - start[1]) / step[1]
    point = side + t * dside
    on = (_dot(point, point) <= 1) & (t > 0) & (t < best)
    best[on] = t[on]
    return best


def _ball_outward(point: np.ndarray) -> np.ndarray:
    return point


def _box_outward(point: np.ndarray) -> np.ndarray:
    axis = np.abs(point).argmax(axis=0)
    outward = np.zeros_like(point)
    columns = np.arange(point.shape[1])
    outward[axis, columns] = np.sign(point[axis, columns])
    return outward


def _cylinder_outward(point: np.ndarray) -> np.ndarray:
    x, y, z = point
    end = np.abs(y) > np.hypot(x, z)
    return np.where(end, (0 * x, np.sign(y), 0 * z), (x, 0 * y, z))


def _cone_outward(point: np.ndarray) -> np.ndarray:
    x, y, z = point
    base = np.abs(y + 1) < np.abs(np.hypot(x, z) - (1 - y) / 2)
    return np.where(base, (0 * x, 0 * y - 1, 0 * z), (x, (1 - y) / 4 + FLAT, z))


_ENTER: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ball": _enter_ball,
    "box": _enter_box,
    "cylinder": _enter_cylinder,
    "cone": _enter_cone,
}
_OUTWARD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ball": _ball_outward,
    "box": _box_outward,
    "cylinder": _cylinder_outward,
    "cone": _cone_outward,
}

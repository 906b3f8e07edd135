"""Drawing of the scenes: outlines of the classes, textures, and objects on top of each other.

Coordinates are in pixels, x to the right and y down. Pixel ``i`` covers ``[i, i + 1)``. Colours are
BGR.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SUPERSAMPLE = 8  # sub-pixels per pixel and axis in which an outline is drawn
FIXED_POINT_BITS = 4  # OpenCV takes polygon vertices as fixed-point integers
MAX_TRIES = 40  # positions tried for one object before it is left out
MIN_COLOUR_DISTANCE = 45.0  # CIE76, between an object and all that is already in the picture
HUE_SPREAD = (
    20.0  # standard deviation around the hue of a class, whose neighbours are 40 degrees off
)
BACKGROUND = -1  # value of the background in ``Scene.owner``


def _arc(radius: float, start: float, stop: float, centre: float = 0.0) -> np.ndarray:
    """Sample an arc around ``(centre, 0)`` between two angles in degrees, both ends included."""
    angle = np.radians(np.linspace(start, stop, 49))
    return np.stack([centre + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.radians(np.linspace(0, 360, 72, endpoint=False))
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


def _star() -> np.ndarray:
    angle = np.radians(np.arange(10) * 36)
    radius = np.where(np.arange(10) % 2, 0.45, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _points(*xy: float) -> np.ndarray:
    return np.array(xy, dtype=np.float64).reshape(-1, 2)


# Closed rings of (x, y). If a class has two rings, the second one is a hole.
_RINGS: dict[str, list[np.ndarray]] = {
    "arrow": [
        _points(1, 0, 0.1, 0.85, 0.1, 0.3, -1, 0.3, -1, -0.3, 0.1, -0.3, 0.1, -0.85),
    ],
    "circle": [_arc(1, 0, 360)[:-1]],
    # The second circle cuts the first one at angles of 51.318 and 77.364 degrees.
    "crescent": [
        np.concatenate([_arc(1, 51.318, 308.682), _arc(0.8, 282.636, 77.364, 0.45)[1:-1]])
    ],
    "cross": [
        _points(
            *(0.3, 1, 0.3, 0.3, 1, 0.3, 1, -0.3, 0.3, -0.3, 0.3, -1),
            *(-0.3, -1, -0.3, -0.3, -1, -0.3, -1, 0.3, -0.3, 0.3, -0.3, 1),
        )
    ],
    "heart": [_heart()],
    "ring": [_arc(1, 0, 360)[:-1], _arc(0.55, 0, 360)[:-1]],
    "square": [_points(1, 1, -1, 1, -1, -1, 1, -1)],
    "star": [_star()],
    "triangle": [_arc(1, 0, 360)[[0, 16, 32]]],
}
CLASSES: tuple[str, ...] = tuple(_RINGS)  # alphabetical, as mmpretrain numbers class folders


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def _normalise(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Centre the bounding box of the rings at 0, and scale the rings to an area of 1."""
    outer, *holes = rings
    middle = (outer.min(axis=0) + outer.max(axis=0)) / 2
    scale = np.sqrt(_area(outer) - sum(_area(hole) for hole in holes))
    return [(ring - middle) / scale for ring in rings]


_UNIT_RINGS = [_normalise(_RINGS[name]) for name in CLASSES]


@dataclass(frozen=True)
class Shape:
    """One object: its class and its outline.

    Attributes:
        category: index into ``CLASSES``.
        rings: closed outlines, each ``(N, 2)`` float64. A second ring is a hole. The outlines may
            leave the image, and include parts that other objects hide.
    """

    category: int
    rings: list[np.ndarray]


@dataclass(frozen=True)
class Scene:
    """A picture and the objects in it.

    Attributes:
        image: ``(H, W, 3)`` uint8, BGR.
        owner: ``(H, W)`` int16, the index into ``shapes`` of the topmost object that covers at
            least half of the pixel, or ``BACKGROUND``.
        shapes: the objects, from the lowest to the topmost. Each has pixels in ``owner``.
    """

    image: np.ndarray
    owner: np.ndarray
    shapes: list[Shape]

    def mask(self, index: int) -> np.ndarray:
        """Mark the visible pixels of object ``index``, ``(H, W)`` bool."""
        return self.owner == index


def draw_scene(
    rng: np.random.Generator,
    size: int,
    categories: Sequence[int],
    side_range: tuple[float, float],
    spread: float,
    min_visible: float,
) -> Scene:
    """Draw one square picture with the given objects on a textured background.

    Backgrounds are dark and objects are bright. So a small model learns in minutes to find objects,
    and then learns the class. Colour is only a hint to the class: the class with the nearest hue is
    right for three objects in five. Texture is not a hint at all.

    Sizes are uniform in the square root of the side, so that small objects are common and large
    objects are not rare. An object needs a place where it and all objects below it show enough. If
    the search finds no such place, the object is left out, so that every object can be annotated.

    Args:
        rng: source of all randomness.
        size: width and height of the picture in pixels.
        categories: class index of each object, in drawing order. Later objects cover earlier ones.
        side_range: smallest and largest object, as the square root of its area in pixels.
        spread: share of the width and height, around the middle, where objects have their centres.
        min_visible: share of each object's area that must show. Other objects and the border of
            the picture may hide the rest.

    Returns:
        The picture and its objects.
    """
    colours = [rng.uniform(30, 85, 3)]
    colours.append(_shade(rng, colours[0], 15, 40))
    image = _texture(rng, size, size, *colours)

    owner = np.full((size, size), BACKGROUND, dtype=np.int16)
    shapes: list[Shape] = []
    needed: list[float] = []  # pixels that each shape must show
    for category in categories:
        side = rng.uniform(*np.sqrt(side_range)) ** 2
        needed_here = [*needed, min_visible * side**2]
        for _ in range(MAX_TRIES):
            centre = size * (0.5 + spread * rng.uniform(-0.5, 0.5, 2))
            rings = _place(rng, category, side, centre)
            window, alpha = _coverage(rings, size)
            candidate = owner.copy()
            candidate[window][alpha >= 0.5] = len(shapes)
            shown = np.bincount(candidate[candidate >= 0], minlength=len(needed_here))
            if np.all(shown >= needed_here):
                break
        else:
            continue
        owner, needed = candidate, needed_here
        shapes.append(Shape(category, rings))

        colour = _colour(rng, category, colours)
        # A small object is nearly plain: a pattern as large as its features would hide its shape.
        shade = _shade(rng, colour, 0, min(30, side / 2))
        colours += [colour, shade]
        height, width = alpha.shape
        skin = _texture(rng, height, width, colour, shade)
        image[window] += alpha[..., None] * (skin - image[window])

    image += rng.normal(0, rng.uniform(2, 6), image.shape)  # sensor noise
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), owner, shapes)


def _place(
    rng: np.random.Generator, category: int, side: float, centre: np.ndarray
) -> list[np.ndarray]:
    """Turn the outline of a class at random, scale it to an area of ``side**2``, and move it."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = side * np.array([[cos, sin], [-sin, cos]])
    return [ring @ turn + centre for ring in _UNIT_RINGS[category]]


def _coverage(rings: list[np.ndarray], size: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """Compute the share of each pixel inside an outline.

    Returns:
        The window of the image that the outline touches, as a pair of slices, and ``(h, w)``
        float32 in [0, 1] for that window.
    """
    low = np.clip(np.floor(rings[0].min(axis=0)).astype(int), 0, size - 1)
    high = np.clip(np.ceil(rings[0].max(axis=0)).astype(int), low + 1, size)
    width, height = high - low
    canvas = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), dtype=np.uint8)
    # OpenCV puts integer coordinates at the centres of (sub-)pixels.
    vertices = [
        np.rint(((ring - low) * SUPERSAMPLE - 0.5) * 2**FIXED_POINT_BITS).astype(np.int32)
        for ring in rings
    ]
    cv2.fillPoly(canvas, vertices, 255, shift=FIXED_POINT_BITS)
    alpha = cv2.resize(canvas, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    return window, alpha.astype(np.float32) / 255


def _texture(
    rng: np.random.Generator, height: int, width: int, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Mix two colours in a random pattern: ``(height, width, 3)`` float32."""
    pattern: Callable = _PATTERNS[rng.integers(len(_PATTERNS))]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    mix = pattern(rng, u, v)[..., None]
    return (first + mix * (second - first)).astype(np.float32)


def _period(rng: np.random.Generator, u: np.ndarray) -> float:
    """Draw the period of a pattern in pixels, so that the pattern repeats a few times."""
    return rng.uniform(4, max(8, max(u.shape) / 5))


def _plain(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.zeros_like(u)


def _gradient(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (u - u.min()) / max(u.max() - u.min(), 1)


def _stripes(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(3 * np.sin(u * (2 * np.pi / _period(rng, u))))


def _checker(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    wave = 2 * np.pi / _period(rng, u)
    return 0.5 + 0.5 * np.tanh(6 * np.sin(u * wave) * np.sin(v * wave))


def _dots(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    wave = 2 * np.pi / _period(rng, u)
    return 0.5 + 0.5 * np.tanh(3 * (np.cos(u * wave) + np.cos(v * wave) - 0.8))


def _clouds(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    height, width = u.shape
    cells = rng.integers(3, 16)
    grid = rng.uniform(0, 1, (cells, cells)).astype(np.float32)
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


_PATTERNS = (_plain, _gradient, _stripes, _checker, _dots, _clouds)


def _shade(rng: np.random.Generator, colour: np.ndarray, low: float, high: float) -> np.ndarray:
    """Make a dark colour lighter, or a bright one darker, by ``low`` to ``high`` of 255."""
    sign = 1 if colour.mean() < 128 else -1
    return np.clip(colour + sign * rng.uniform(low, high), 0, 255)


def _colour(rng: np.random.Generator, category: int, used: list[np.ndarray]) -> np.ndarray:
    """Draw a bright colour near the hue of a class, which the eye can tell from all used colours.

    If none of 64 candidates is distant enough, take the most distant one.
    """
    hue = 360 * category / len(CLASSES) + HUE_SPREAD * rng.standard_normal(64)
    saturation, value = rng.uniform((0.35, 0.75), 1, (64, 2)).T
    hsv = np.stack([hue % 360, saturation, value], axis=1).astype(np.float32)
    candidates = 255.0 * cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0]
    lab = _to_lab(candidates)
    distance = np.linalg.norm(lab[:, None] - _to_lab(np.array(used)), axis=-1).min(axis=1)
    far_enough = np.flatnonzero(distance >= MIN_COLOUR_DISTANCE)
    return candidates[far_enough[0] if far_enough.size else distance.argmax()]


def _to_lab(colours: np.ndarray) -> np.ndarray:
    return cv2.cvtColor((colours[None] / 255).astype(np.float32), cv2.COLOR_BGR2Lab)[0]

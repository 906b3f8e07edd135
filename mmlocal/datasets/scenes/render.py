"""A ray caster: one pass gives the picture and every label.

The camera is a pinhole without lens errors. Its axis goes through the middle of the picture. Pixel
``i`` covers ``[i, i + 1)``, and its ray goes through its middle. A ray's direction has a z of 1 in
the camera's axes, so the distance along the ray in these units is the depth.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from mmlocal.datasets.scenes.compose import FIRST_SOLID, FOCAL, ROOM_SURFACES, Piece, World

AMBIENT = 0.55  # light from everywhere
DIFFUSE = 1.0  # light of the lamp, right before it
FADE = 3.5  # metres at which the light of the lamp has halved
MIN_VISIBLE = 0.004  # smallest share of the picture that a solid shows, else it is left out
BLUR = 0.5  # standard deviation of the lens in pixels
NOISE = (2.0, 5.0)  # range of the standard deviation of the sensor's noise, of 255


@dataclass(frozen=True)
class Scene:
    """A picture and its labels.

    Attributes:
        image: ``(H, W, 3)`` uint8, RGB.
        depth: ``(H, W)`` float32, metres along the camera's axis, above 0 everywhere.
        normals: ``(H, W, 3)`` float32 unit vectors: x to the right, y up, z towards the camera.
        owner: ``(H, W)`` int16, number of the surface or object.
        semantic: ``(H, W)`` uint8 index into ``SCENE_CLASSES``.
        parts: ``(H, W)`` uint8 index into ``PART_NAMES``.
        saliency: ``(H, W)`` bool.
        edges: ``(H, W)`` bool, one pixel wide.
        classes: index into ``SCENE_CLASSES`` for every owner. Solids begin at ``FIRST_SOLID``.
    """

    image: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    owner: np.ndarray
    semantic: np.ndarray
    parts: np.ndarray
    saliency: np.ndarray
    edges: np.ndarray
    classes: list[int]


def render_scene(rng: np.random.Generator, world: World, size: tuple[int, int]) -> Scene:
    """Draw a world.

    Args:
        rng: source of the noise.
        world: what to draw. Solids that hardly show are left out.
        size: height and width of the picture in pixels.

    Returns:
        The picture and its labels.
    """
    rays = camera_rays(size)
    while True:
        depth, piece = cast(world, rays, size)
        owner = _owners(world, piece)
        shown = np.bincount(owner, minlength=len(world.classes))
        hidden = {
            number
            for number in range(FIRST_SOLID, len(world.classes))
            if shown[number] < MIN_VISIBLE * owner.size
        }
        if not hidden:
            break
        world = world.without(hidden)
    points = world.eye + depth[:, None] * (rays @ world.view.T)
    normals = _normals(world, piece, points)
    colours = 255 * _shade(world, piece, points, normals).reshape(*size, 3)
    noise = rng.normal(0, rng.uniform(*NOISE), colours.shape)
    image = cv2.GaussianBlur(colours, (0, 0), BLUR) + noise
    owner = owner.reshape(size)
    parts = np.array([0] * FIRST_SOLID + [p.part for p in world.pieces], dtype=np.uint8)
    return Scene(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        depth=depth.reshape(size).astype(np.float32),
        normals=(normals @ world.view * (1, 1, -1)).reshape(*size, 3).astype(np.float32),
        owner=owner.astype(np.int16),
        semantic=np.array(world.classes, dtype=np.uint8)[owner],
        parts=parts[piece].reshape(size),
        saliency=np.array(world.salient)[owner],
        edges=boundaries(owner),
        classes=list(world.classes),
    )


def camera_rays(size: tuple[int, int]) -> np.ndarray:
    """Compute the directions of all pixels in the camera's axes (x right, y up, z forward = 1).

    Args:
        size: height and width of the picture in pixels.

    Returns:
        ``(H * W, 3)`` float64, row by row.
    """
    height, width = size
    x = (np.arange(width) + 0.5 - width / 2) / (FOCAL * width)
    y = -(np.arange(height) + 0.5 - height / 2) / (FOCAL * width)
    return np.stack([np.tile(x, height), np.repeat(y, width), np.ones(height * width)], axis=1)


def boundaries(owner: np.ndarray) -> np.ndarray:
    """Mark the pixels whose right or lower neighbour belongs to something else.

    Args:
        owner: ``(H, W)`` integers.

    Returns:
        ``(H, W)`` bool, lines of one pixel.
    """
    edges = np.zeros(owner.shape, dtype=bool)
    edges[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edges[:-1] |= owner[:-1] != owner[1:]
    return edges


def cast(world: World, rays: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Find the first thing that each ray meets.

    Args:
        world: the room and its solids.
        rays: directions of :func:`camera_rays`.
        size: height and width of the picture in pixels.

    Returns:
        Depth ``(H * W,)`` in metres, and what is there ``(H * W,)``: an index into
        ``ROOM_SURFACES``, or ``FIRST_SOLID`` plus the index of a piece.
    """
    directions = rays @ world.view.T
    depth, piece = _cast_room(world, directions)
    pixels = np.arange(len(rays)).reshape(size)
    for number, item in enumerate(world.pieces):
        window = pixels[_window(world, item, size)].ravel()
        if not window.size:
            continue
        t = item.solid.enter(world.eye, directions[window])
        nearer = t < depth[window]
        depth[window[nearer]] = t[nearer]
        piece[window[nearer]] = FIRST_SOLID + number
    return depth, piece


def _cast_room(world: World, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find where rays leave the box of the room, and which of ``ROOM_SURFACES`` is there."""
    with np.errstate(divide="ignore"):
        exits = (np.where(directions > 0, world.high, world.low) - world.eye) / directions
    exits[directions == 0] = np.inf
    axis = exits.argmin(axis=1)
    depth = exits.min(axis=1)
    sides = [np.where(directions[:, 0] < 0, 2, 3), np.where(directions[:, 1] > 0, 1, 0)]
    surface = np.where(axis == 0, sides[0], np.where(axis == 1, sides[1], 4))
    points = world.eye + depth[:, None] * directions
    for name, plane, axes, ranges in (
        ("rug", "floor", (0, 2), world.rug),
        ("picture", "back wall", (0, 1), world.picture),
    ):
        flat = points[:, axes]
        on = np.all((flat > ranges[:, 0]) & (flat < ranges[:, 1]), axis=1)
        surface[on & (surface == ROOM_SURFACES.index(plane))] = ROOM_SURFACES.index(name)
    return depth, surface


def _window(world: World, piece: Piece, size: tuple[int, int]) -> tuple[slice, slice]:
    """Compute the part of the picture that a piece may cover."""
    corners = (piece.solid.corners - world.eye) @ world.view
    height, width = size
    if corners[:, 2].min() < 0.05:  # beside or behind the camera
        return slice(None), slice(None)
    x = corners[:, 0] / corners[:, 2] * FOCAL * width + width / 2
    y = -corners[:, 1] / corners[:, 2] * FOCAL * width + height / 2
    low = np.clip(np.floor([y.min(), x.min()]), 0, size).astype(int)
    high = np.clip(np.ceil([y.max(), x.max()]), 0, size).astype(int)
    return slice(low[0], high[0]), slice(low[1], high[1])


def _owners(world: World, piece: np.ndarray) -> np.ndarray:
    return np.array([*range(FIRST_SOLID), *(p.owner for p in world.pieces)])[piece]


def _normals(world: World, piece: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Compute the unit normals ``(N, 3)`` in the room's axes."""
    inward = np.array(
        [(0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0), (0, 0, -1), (0, 1, 0), (0, 0, -1)],
        dtype=np.float64,
    )
    normals = inward[np.minimum(piece, FIRST_SOLID - 1)]
    for number, item in enumerate(world.pieces):
        here = piece == FIRST_SOLID + number
        if here.any():
            normals[here] = item.solid.normals(points[here])
    return normals


def _shade(world: World, piece: np.ndarray, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Compute colours ``(N, 3)`` in [0, 1]: paint, times light from everywhere and the lamp."""
    albedo = np.empty_like(points)
    for number, skin in enumerate(world.room_skins):
        here = piece == number
        albedo[here] = skin.paint(points[here])
    for number, item in enumerate(world.pieces):
        here = piece == FIRST_SOLID + number
        own = item.solid.local(points[here]) * item.solid.half_sizes
        albedo[here] = item.skin.paint(own)
    to_lamp = world.lamp - points
    distance = np.linalg.norm(to_lamp, axis=1)
    facing = np.maximum(np.einsum("ni,ni->n", normals, to_lamp) / distance, 0)
    lit = DIFFUSE * facing / (1 + (distance / FADE) ** 2)
    lit *= np.where(_in_shadow(world, points + 1e-3 * normals, to_lamp), 0.35, 1.0)
    above = AMBIENT * (0.85 + 0.15 * normals[:, 1]) / (1 + (distance / (3 * FADE)) ** 2)
    return np.clip(albedo * (above + lit)[:, None], 0, 1)


def _in_shadow(world: World, points: np.ndarray, to_lamp: np.ndarray) -> np.ndarray:
    """Find the points from which some solid hides the lamp."""
    dark = np.zeros(len(points), dtype=bool)
    length = np.einsum("ni,ni->n", to_lamp, to_lamp)
    for item in world.pieces:
        # Only rays that pass through the ball around the solid can meet it.
        to_middle = item.solid.centre - points
        along = np.clip(np.einsum("ni,ni->n", to_middle, to_lamp) / length, 0, 1)
        passing = to_middle - along[:, None] * to_lamp
        near = np.einsum("ni,ni->n", passing, passing) < np.sum(item.solid.half_sizes**2)
        near &= ~dark
        index = np.flatnonzero(near)
        t = item.solid.enter(points[index], to_lamp[index])
        dark[index] = t < 1
    return dark

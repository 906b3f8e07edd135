"""Random rooms with solids and people."""

from dataclasses import dataclass, field

import numpy as np

from mmlocal.datasets.scenes import skins
from mmlocal.datasets.scenes.solids import Solid, between, stretched, turned

#: Classes of the semantic labels. The label in a PNG is the index plus 1.
SCENE_CLASSES: tuple[str, ...] = (
    "floor",
    "wall",
    "ceiling",
    "rug",
    "picture",
    "ball",
    "box",
    "cone",
    "cylinder",
    "person",
)
#: Classes of what stands on the floor: all that have a bounding box.
SOLID_CLASSES: tuple[str, ...] = ("ball", "box", "cone", "cylinder", "person")
#: Labels of the parts of a person; 0 is all else.
PART_NAMES: tuple[str, ...] = (
    "background",
    "head",
    "torso",
    "upper arm",
    "lower arm",
    "upper leg",
    "lower leg",
)
# The surfaces of the room own the first numbers, then the solids follow.
ROOM_SURFACES = ("floor", "ceiling", "left wall", "right wall", "back wall", "rug", "picture")
FIRST_SOLID = len(ROOM_SURFACES)
_ROOM_CLASSES = ("floor", "ceiling", "wall", "wall", "wall", "rug", "picture")

SOLIDS_PER_SCENE = (2, 6)
PERSON_SHARE = 0.3  # of the solids
CAMERA_HEIGHT = (1.45, 1.55)  # narrow, so that a place on the floor tells its distance
PITCH = (10.0, 14.0)  # degrees that the camera looks down
YAW = 18.0  # largest turn to either side, in degrees
FOCAL = 0.8  # focal length as a share of the picture's width
TILE = 0.5  # side of the floor's tiles in metres, the same in every room
NEAR = 1.9  # smallest distance of a solid's middle from the camera, in metres
MAX_TRIES = 30  # positions tried for a solid before it is left out


@dataclass(frozen=True)
class Piece:
    """A solid of one colour, as a part of an object.

    Args:
        solid: where it is.
        skin: how it is painted.
        owner: number of its object among all surfaces, from ``FIRST_SOLID``.
        part: label of the part of a person, 0 for other objects.
    """

    solid: Solid
    skin: skins.Skin
    owner: int
    part: int = 0


@dataclass(frozen=True)
class World:
    """A room, what stands in it, the lamp and the camera, in metres.

    The room's axes are x to the right, y up, z from the camera to the back wall. The camera is
    above 0.

    Args:
        low: ``(3,)`` smallest coordinates of the room.
        high: ``(3,)`` largest coordinates of the room.
        rug: ``(2, 2)`` ranges of x and z on the floor.
        picture: ``(2, 2)`` ranges of x and y on the back wall.
        room_skins: one for each of ``ROOM_SURFACES``.
        eye: ``(3,)`` position of the camera.
        view: ``(3, 3)`` rotation from the camera's axes (x right, y up, z forward) to the room's.
        lamp: ``(3,)`` position of the lamp.
        pieces: solids.
        classes: index into ``SCENE_CLASSES`` for every owner.
        salient: whether each owner is salient.
    """

    low: np.ndarray
    high: np.ndarray
    rug: np.ndarray
    picture: np.ndarray
    room_skins: list[skins.Skin]
    eye: np.ndarray
    view: np.ndarray
    lamp: np.ndarray
    pieces: list[Piece] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    salient: list[bool] = field(default_factory=list)

    def without(self, owners: set[int]) -> "World":
        """Make the same world without some objects. The others keep their order."""
        kept = [i for i in range(len(self.classes)) if i not in owners]
        number = {owner: i for i, owner in enumerate(kept)}
        pieces = [
            Piece(p.solid, p.skin, number[p.owner], p.part)
            for p in self.pieces
            if p.owner in number
        ]
        changed = {
            "pieces": pieces,
            "classes": [self.classes[i] for i in kept],
            "salient": [self.salient[i] for i in kept],
        }
        return World(**(vars(self) | changed))


def compose_world(rng: np.random.Generator, first_class: int = 0) -> World:
    """Draw a room with two to six solids.

    Args:
        rng: source of all randomness.
        first_class: index into ``SOLID_CLASSES`` of the first solid, so that callers can make the
            classes take turns.

    Returns:
        The world.
    """
    low = np.array([-rng.uniform(1.7, 3.0), 0.0, -1.0])
    high = np.array([rng.uniform(1.7, 3.0), rng.uniform(2.4, 2.6), rng.uniform(4.0, 6.5)])
    pitch, yaw = np.radians(rng.uniform(*PITCH)), np.radians(rng.uniform(-YAW, YAW))
    cos, sin = np.cos(pitch), np.sin(pitch)
    view = turned(yaw) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    eye = np.array([0.0, rng.uniform(*CAMERA_HEIGHT), 0.0])
    middle = rng.uniform((-1.0, 2.5), (1.0, high[2] - 1))
    half = rng.uniform((0.5, 0.4), (1.0, 0.8))
    rug = np.stack([middle - half, middle + half], axis=1)
    middle = rng.uniform((-1.2, 1.4), (1.2, 1.7))
    half = rng.uniform((0.3, 0.25), (0.6, 0.45))
    picture = np.stack([middle - half, middle + half], axis=1)
    world = World(
        low,
        high,
        rug,
        picture,
        _room_skins(rng),
        eye,
        view,
        eye + np.array([-0.8, 0.6, 0.2]) + rng.uniform(-0.2, 0.2, 3),
        classes=[SCENE_CLASSES.index(name) for name in _ROOM_CLASSES],
        salient=[False] * FIRST_SOLID,
    )
    taken: list[tuple[float, float, float]] = []
    for number in range(rng.integers(*SOLIDS_PER_SCENE, endpoint=True)):
        if number == 0:
            name = SOLID_CLASSES[first_class]
        elif rng.uniform() < PERSON_SHARE:
            name = "person"
        else:
            name = SOLID_CLASSES[rng.integers(len(SOLID_CLASSES) - 1)]
        _add_solid(rng, world, name, taken, vivid=number == 0 or rng.uniform() < 0.5)
    return world


def _room_skins(rng: np.random.Generator) -> list[skins.Skin]:
    """Paint the room: a floor of wood or stone, pale walls, a white ceiling."""
    floor = skins.colour(rng.uniform(15, 45), rng.uniform(0.15, 0.4), rng.uniform(0.5, 0.65))
    wall = skins.colour(rng.uniform(0, 360), rng.uniform(0, 0.15), rng.uniform(0.75, 0.87))
    ceiling = skins.colour(50, rng.uniform(0, 0.06), rng.uniform(0.92, 1.0))
    rug = skins.colour(rng.uniform(0, 360), rng.uniform(0.2, 0.45), rng.uniform(0.25, 0.45))
    picture = skins.colour(rng.uniform(0, 360), rng.uniform(0.2, 0.45), rng.uniform(0.25, 0.5))
    wall_skin = skins.random_skin(rng, wall, 0.1)
    plain = np.zeros((1, 3))
    return [
        skins.tiles(rng, floor, TILE, (0, 2)),
        skins.Skin(np.stack([ceiling, ceiling]), "plain", plain, plain[0]),
        wall_skin,
        wall_skin,
        wall_skin,
        skins.random_skin(rng, rug),
        skins.random_skin(rng, picture, 0.6),
    ]


def _add_solid(
    rng: np.random.Generator, world: World, name: str, taken: list, *, vivid: bool
) -> None:
    """Put a solid on a free place of the floor that the camera sees, if there is one."""
    size, radius = _size(rng, name)
    for _ in range(MAX_TRIES):
        distance = rng.uniform(NEAR, world.high[2] - radius - 0.1)
        across = rng.uniform(-0.85, 0.85) * distance * 0.5 / FOCAL
        place = world.view @ np.array([across, 0, distance])
        inside = np.all(place[::2] > world.low[::2] + radius) and np.all(
            place[::2] < world.high[::2] - radius
        )
        free = all(np.hypot(place[0] - x, place[2] - z) > radius + r for x, z, r in taken)
        if inside and free and place[2] > NEAR - 0.5:
            break
    else:
        return
    taken.append((place[0], place[2], radius))
    owner, turn = len(world.classes), rng.uniform(0, 2 * np.pi)
    world.classes.append(SCENE_CLASSES.index(name))
    world.salient.append(vivid)
    saturation = rng.uniform(*(skins.VIVID if vivid else skins.DULL))
    if name == "person":
        world.pieces.extend(_person(rng, owner, place, size[1], turn, saturation))
        return
    hue = 360 * SOLID_CLASSES.index(name) / (len(SOLID_CLASSES) - 1)
    hue += skins.HUE_SPREAD * rng.standard_normal()
    skin = skins.random_skin(rng, skins.colour(hue, saturation, rng.uniform(0.7, 1.0)))
    centre = np.array([place[0], size[1], place[2]])
    world.pieces.append(Piece(stretched(name, size, centre, turn), skin, owner))


def _size(rng: np.random.Generator, name: str) -> tuple[tuple[float, float, float], float]:
    """Draw the half sizes of a solid, and the radius of the floor that it needs."""
    if name == "ball":
        radius = rng.uniform(0.28, 0.48)
        return (radius, radius, radius), radius
    if name == "box":
        x, y, z = rng.uniform((0.22, 0.2, 0.22), (0.45, 0.5, 0.45))
        return (x, y, z), float(np.hypot(x, z))
    if name == "person":
        height = rng.uniform(1.5, 1.85)
        return (0.0, height, 0.0), 0.26 * height
    low, high = ((0.3, 0.35), (0.45, 0.6)) if name == "cone" else ((0.2, 0.3), (0.36, 0.6))
    radius, height = rng.uniform(low, high)
    return (radius, height, radius), radius


def _person(
    rng: np.random.Generator,
    owner: int,
    place: np.ndarray,
    height: float,
    turn: float,
    saturation: float,
) -> list[Piece]:
    """Build a person in a shirt and shorts of ten solids, with arms and legs at random angles."""
    tone = skins.colour(skins.SKIN_HUE + rng.uniform(-6, 6), 0.45, rng.uniform(0.55, 0.95))
    plain = skins.Skin(np.stack([tone, tone]), "plain", np.zeros((1, 3)), np.zeros(1))
    shirt = skins.random_skin(rng, skins.colour(rng.uniform(0, 360), saturation, 0.9))
    dark = skins.colour(rng.uniform(180, 260), rng.uniform(0.2, 0.5), rng.uniform(0.25, 0.5))
    shorts = skins.random_skin(rng, dark, 0.15)
    frame = turned(turn)
    floor = np.array([place[0], 0.0, place[2]])

    def at(x: float, y: float, z: float) -> np.ndarray:
        return floor + frame @ (height * np.array([x, y, z]))

    def step(length: float, forward: float, outward: float) -> np.ndarray:
        down = np.array([np.sin(outward), -np.cos(outward) * np.cos(forward), np.sin(forward)])
        return height * length * frame @ (down / np.linalg.norm(down))

    def upright(kind: str, x: float, y: float, z: float, middle: float) -> Solid:
        return stretched(kind, (x * height, y * height, z * height), at(0, middle, 0), turn)

    result = [
        Piece(upright("ball", 0.085, 0.105, 0.09, 0.905), plain, owner, 1),
        Piece(upright("box", 0.115, 0.17, 0.065, 0.66), shirt, owner, 2),
    ]
    for side in (-1, 1):
        shoulder = at(side * 0.16, 0.8, 0)
        elbow = shoulder + step(0.19, rng.uniform(-0.5, 0.7), side * rng.uniform(0.1, 0.9))
        wrist = elbow + step(0.2, rng.uniform(0.0, 1.3), side * rng.uniform(0.0, 0.9))
        hip = at(side * 0.065, 0.5, 0)
        forward = rng.uniform(-0.25, 0.35)
        knee = hip + step(0.25, forward, side * rng.uniform(0.0, 0.15))
        foot = np.array([knee[0], 0.0, knee[2]]) + frame @ np.array(
            [0, 0, -0.15 * height * forward]
        )
        for start, end, radius, skin, part in (
            (shoulder, elbow, 0.05, shirt, 3),
            (elbow, wrist, 0.044, plain, 4),
            (hip, knee, 0.062, shorts, 5),
            (knee, foot, 0.052, plain, 6),
        ):
            solid = between("cylinder", start, end, radius * height, turn)
            result.append(Piece(solid, skin, owner, part))
    return result

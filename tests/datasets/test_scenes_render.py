"""The renderer against independent formulas: planes, balls, boxes, cylinders and cones."""

import numpy as np
import pytest

from mmlocal.datasets.scenes import PART_NAMES, SCENE_CLASSES, SOLID_CLASSES, make_room_scene
from mmlocal.datasets.scenes.compose import (
    FIRST_SOLID,
    FOCAL,
    ROOM_SURFACES,
    Piece,
    World,
    compose_world,
)
from mmlocal.datasets.scenes.render import boundaries, camera_rays, cast, render_scene
from mmlocal.datasets.scenes.skins import Skin, random_skin
from mmlocal.datasets.scenes.solids import Solid, between, stretched, turned

SIZE = (96, 120)
EYE = np.array([0.0, 1.5, 0.0])
PLAIN = Skin(np.full((2, 3), 0.5), "plain", np.zeros((1, 3)), np.zeros(1))


def world_of(*solids: Solid, view: np.ndarray | None = None) -> World:
    """Make a room of 4 x 2.5 x 6 metres without rug and picture, and one object per solid."""
    return World(
        low=np.array([-2.0, 0.0, -1.0]),
        high=np.array([2.0, 2.5, 5.0]),
        rug=np.zeros((2, 2)),
        picture=np.zeros((2, 2)),
        room_skins=[PLAIN] * FIRST_SOLID,
        eye=EYE,
        view=np.eye(3) if view is None else view,
        lamp=np.array([-0.8, 2.1, 0.2]),
        pieces=[Piece(solid, PLAIN, FIRST_SOLID + k) for k, solid in enumerate(solids)],
        classes=[0, 2, 1, 1, 1, 3, 4] + [SCENE_CLASSES.index(s.kind) for s in solids],
        salient=[False] * (FIRST_SOLID + len(solids)),
    )


def render(world: World):
    return render_scene(np.random.default_rng(0), world, SIZE)


def pixel(point) -> tuple[int, int]:
    """Project a point before an unturned camera; the row and the column of its pixel."""
    x, y, z = np.asarray(point, dtype=float) - EYE
    focal = FOCAL * SIZE[1]
    return int(SIZE[0] / 2 - y / z * focal), int(SIZE[1] / 2 + x / z * focal)


def points_of(scene) -> np.ndarray:
    """Turn the depth map into points in the axes of the normals: x right, y up, z backward."""
    rays = camera_rays(SIZE).reshape(*SIZE, 3) * (1, 1, -1)
    return scene.depth[..., None].astype(float) * rays


def test_room_without_solids():
    """Depth is the plane's offset along the axis; each pixel by hand."""
    scene = render(world_of())
    focal = FOCAL * SIZE[1]
    names = np.array(ROOM_SURFACES)[scene.owner]
    for row, column in ((0, 60), (95, 60), (48, 0), (48, 119), (48, 60), (90, 5), (3, 100)):
        x, y = (column + 0.5 - 60) / focal, -(row + 0.5 - 48) / focal
        distances = {
            "floor": -1.5 / y,
            "ceiling": 1.0 / y,
            "left wall": -2.0 / x,
            "right wall": 2.0 / x,
            "back wall": 5.0,
        }
        nearest = min((t, name) for name, t in distances.items() if t > 0)
        assert names[row, column] == nearest[1]
        assert scene.depth[row, column] == pytest.approx(nearest[0], rel=1e-6)
    normals = {
        "floor": (0, 1, 0),
        "ceiling": (0, -1, 0),
        "left wall": (1, 0, 0),
        "right wall": (-1, 0, 0),
        "back wall": (0, 0, 1),  # towards the camera
    }
    for name, normal in normals.items():
        assert (names == name).any()
        np.testing.assert_array_equal(scene.normals[names == name] - np.float32(normal), 0)


@pytest.mark.parametrize("centre", [(0.0, 1.5, 3.0), (0.4, 0.9, 2.5), (-0.8, 1.8, 4.0)])
def test_ball(centre):
    """Depth solves |t d - c| = r, and the normal is (t d - c) / r."""
    scene = render(world_of(stretched("ball", (0.4, 0.4, 0.4), np.array(centre))))
    mask = scene.owner == FIRST_SOLID
    assert mask[pixel(centre)]
    rays = camera_rays(SIZE).reshape(*SIZE, 3)
    middle = np.array(centre) - EYE
    for row, column in np.argwhere(mask)[::17]:
        d = rays[row, column]
        roots = np.roots([d @ d, -2 * d @ middle, middle @ middle - 0.16])
        t = roots.real.min()
        assert scene.depth[row, column] == pytest.approx(t, rel=1e-6)
        normal = (t * d - middle) / 0.4 * (1, 1, -1)
        np.testing.assert_allclose(scene.normals[row, column], normal, atol=1e-5)
    # The outline: a ray meets the ball where its distance from the middle is below the radius.
    along = (rays @ middle) / np.sum(rays**2, axis=-1)
    away = np.linalg.norm(middle - along[..., None] * rays, axis=-1)
    np.testing.assert_array_equal(mask, away < 0.4)


def test_box():
    """A box before the camera shows its front; a turned one shows two sides."""
    scene = render(world_of(stretched("box", (0.3, 0.2, 0.5), np.array([0.0, 1.5, 3.0]))))
    mask = scene.owner == FIRST_SOLID
    np.testing.assert_allclose(scene.depth[mask], 2.5, rtol=1e-6)
    np.testing.assert_allclose(scene.normals[mask], np.tile((0, 0, 1), (mask.sum(), 1)), atol=1e-7)
    focal = FOCAL * SIZE[1]
    columns = np.abs(np.arange(SIZE[1]) + 0.5 - SIZE[1] / 2) < 0.3 / 2.5 * focal
    rows = np.abs(np.arange(SIZE[0]) + 0.5 - SIZE[0] / 2) < 0.2 / 2.5 * focal
    np.testing.assert_array_equal(mask, rows[:, None] & columns)
    turn = np.radians(30)
    scene = render(world_of(stretched("box", (0.3, 0.2, 0.3), np.array([0.0, 1.5, 3.0]), turn)))
    found = np.unique(scene.normals[scene.owner == FIRST_SOLID].round(4), axis=0)
    # Both sides face the camera, so their z is above 0.
    expected = [(-np.sin(turn), 0, np.cos(turn)), (np.cos(turn), 0, np.sin(turn))]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_cylinder_and_cone():
    """On the middle column the depth is that of the profile."""
    focal = FOCAL * SIZE[1]
    scene = render(world_of(stretched("cylinder", (0.3, 0.5, 0.3), np.array([0.0, 0.5, 3.0]))))
    x = 0.5 / focal
    for y_world, on_top in ((0.6, False), (0.2, False), (1.05, True)):
        row = pixel((0, y_world, 2.7))[0]
        y = -(row + 0.5 - SIZE[0] / 2) / focal
        # The ray (x, y, 1) t meets (t x)^2 + (t - 3)^2 = 0.09, or the top at 1 m.
        side = np.roots([1 + x * x, -6, 9 - 0.09]).real.min()
        t = (1.0 - 1.5) / y if on_top else side
        assert scene.depth[row, SIZE[1] // 2] == pytest.approx(t, rel=1e-6)
        normal = (0, 1, 0) if on_top else (t * x / 0.3, 0, (3 - t) / 0.3)
        np.testing.assert_allclose(scene.normals[row, SIZE[1] // 2], normal, atol=1e-5)

    scene = render(world_of(stretched("cone", (0.4, 0.5, 0.4), np.array([0.0, 0.5, 3.0]))))
    for y_world in (0.2, 0.5, 0.8):
        row = pixel((0, y_world, 3 - 0.4 * (1 - y_world)))[0]
        y = -(row + 0.5 - SIZE[0] / 2) / focal
        # Radius 0.4 (1 - height), height = 1.5 + t y.
        r0, r1 = 0.4 * (1 - 1.5), -0.4 * y
        t = np.roots([1 + x * x - r1 * r1, -6 - 2 * r0 * r1, 9 - r0 * r0]).real.min()
        assert scene.depth[row, SIZE[1] // 2] == pytest.approx(t, rel=1e-6)
        radius = r0 + r1 * t
        normal = np.array([t * x / radius, 0.4, (3 - t) / radius])
        normal /= np.linalg.norm(normal)
        np.testing.assert_allclose(scene.normals[row, SIZE[1] // 2], normal, atol=1e-5)


def test_limbs_run_between_their_ends():
    rng = np.random.default_rng(1)
    for _ in range(5):
        start, end = rng.normal(size=(2, 3))
        limb = between("cylinder", start, end, 0.1, 0.3)
        ends = np.array([[0, -1, 0], [0, 1, 0]]) @ limb.matrix.T + limb.centre
        np.testing.assert_allclose(ends, [start, end], atol=1e-12)
        np.testing.assert_allclose(limb.half_sizes[[0, 2]], 0.1)
        np.testing.assert_allclose(limb.matrix[:, 1] @ limb.matrix[:, [0, 2]], 0, atol=1e-12)
        np.testing.assert_allclose(limb.local(ends), [[0, -1, 0], [0, 1, 0]], atol=1e-12)
        assert np.linalg.det(limb.matrix) > 0


@pytest.mark.parametrize("kind", ["ball", "box", "cylinder", "cone"])
def test_entries_agree_with_marching_along_the_ray(kind):
    """A solid is a set of points; step along each ray until a point is inside."""
    inside = {
        "ball": lambda p: np.linalg.norm(p, axis=-1) <= 1,
        "box": lambda p: np.abs(p).max(axis=-1) <= 1,
        "cylinder": lambda p: (np.hypot(p[..., 0], p[..., 2]) <= 1) & (np.abs(p[..., 1]) <= 1),
        "cone": lambda p: (
            (np.hypot(p[..., 0], p[..., 2]) <= (1 - p[..., 1]) / 2) & (np.abs(p[..., 1]) <= 1)
        ),
    }[kind]
    rng = np.random.default_rng(7)
    matrix = turned(0.4) @ np.diag([0.5, 0.9, 0.7]) @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    solid = Solid(kind, matrix, np.array([0.2, -0.1, 0.3]))
    directions = rng.normal(size=(60, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    origins = solid.centre - 2.5 * directions
    origins += rng.normal(size=(60, 3)) * 0.4
    entered = solid.enter(origins, directions)
    steps = np.linspace(0, 5, 20001)
    for origin, direction, t in zip(origins, directions, entered, strict=True):
        found = inside(solid.local(origin + steps[:, None] * direction))
        if found[0]:
            continue
        if np.isfinite(t):
            assert found.any()
            assert steps[found.argmax()] == pytest.approx(t, abs=3e-4)
        else:
            assert found.sum() <= 1  # a touch
    assert np.isfinite(entered).sum() > 10


@pytest.mark.parametrize("index", range(6))
def test_normals_are_the_slope_of_the_depth(index):
    """Cross products of neighbouring points, away from boundaries, edges and round places."""
    scene = make_room_scene(2, "train", index, SIZE)
    points = points_of(scene)
    right, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    slope = np.cross(down, right)
    slope /= np.linalg.norm(slope, axis=-1, keepdims=True)
    normals = scene.normals[1:-1, 1:-1]
    smooth = np.ones(normals.shape[:2], dtype=bool)
    for y in range(3):
        for x in range(3):
            window = np.s_[y : y + SIZE[0] - 2, x : x + SIZE[1] - 2]
            smooth &= scene.owner[window] == scene.owner[1:-1, 1:-1]
            smooth &= scene.parts[window] == scene.parts[1:-1, 1:-1]
            smooth &= np.sum(scene.normals[window] * normals, axis=-1) > 0.9
    assert smooth.mean() > 0.6
    cosine = np.sum(slope * normals, axis=-1)[smooth]
    assert np.percentile(cosine, 1) > 0.99
    plane = smooth & (scene.owner[1:-1, 1:-1] < FIRST_SOLID)
    np.testing.assert_allclose(slope[plane], normals[plane], atol=2e-3)


@pytest.mark.parametrize("index", range(6))
def test_labels_agree(index):
    scene = make_room_scene(3, "val", index, SIZE)
    assert scene.image.shape == (*SIZE, 3)
    assert scene.image.dtype == scene.semantic.dtype == scene.parts.dtype == np.uint8
    assert scene.depth.dtype == scene.normals.dtype == np.float32
    assert scene.depth.min() > 0.3
    assert scene.depth.max() < 12
    np.testing.assert_allclose(np.linalg.norm(scene.normals, axis=-1), 1, atol=1e-5)
    # No surface turns its back to the camera.
    assert np.sum(scene.normals * points_of(scene), axis=-1).max() < 1e-4
    np.testing.assert_array_equal(scene.semantic, np.array(scene.classes)[scene.owner])
    person = scene.semantic == SCENE_CLASSES.index("person")
    np.testing.assert_array_equal(scene.parts > 0, person)
    assert scene.parts.max() < len(PART_NAMES)
    assert not scene.saliency[scene.owner < FIRST_SOLID].any()
    for owner in range(FIRST_SOLID, len(scene.classes)):
        assert len(set(scene.saliency[scene.owner == owner])) == 1
        assert SCENE_CLASSES[scene.classes[owner]] in SOLID_CLASSES
        assert np.sum(scene.owner == owner) >= 0.004 * SIZE[0] * SIZE[1]


def test_boundaries_by_loops():
    owner = make_room_scene(0, "train", 1, SIZE).owner
    expected = np.zeros(SIZE, dtype=bool)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            right = x + 1 < SIZE[1] and owner[y, x] != owner[y, x + 1]
            below = y + 1 < SIZE[0] and owner[y, x] != owner[y + 1, x]
            expected[y, x] = right or below
    np.testing.assert_array_equal(boundaries(owner), expected)
    assert 0.02 < expected.mean() < 0.15


def test_a_mirrored_world_has_mirrored_labels_and_normals():
    """Mirror the room in x: the picture of depth is mirrored, and x of the normals is negated."""
    left = stretched("ball", (0.3, 0.3, 0.3), np.array([-0.6, 0.3, 3.0]))
    right = stretched("ball", (0.3, 0.3, 0.3), np.array([0.6, 0.3, 3.0]))
    first, second = render(world_of(left)), render(world_of(right))
    np.testing.assert_allclose(first.depth, second.depth[:, ::-1], rtol=1e-5)
    np.testing.assert_allclose(
        first.normals, second.normals[:, ::-1] * np.float32((-1, 1, 1)), atol=1e-5
    )


def test_turned_cameras_see_the_same_room():
    """Points computed from depth, taken back to the room, lie on its planes."""
    world = compose_world(np.random.default_rng(5))
    depth, piece = cast(world, camera_rays(SIZE), SIZE)
    points = world.eye + depth[:, None] * (camera_rays(SIZE) @ world.view.T)
    planes = {
        "floor": (1, world.low[1]),
        "ceiling": (1, world.high[1]),
        "left wall": (0, world.low[0]),
        "right wall": (0, world.high[0]),
        "back wall": (2, world.high[2]),
        "rug": (1, world.low[1]),
        "picture": (2, world.high[2]),
    }
    for number, name in enumerate(ROOM_SURFACES):
        axis, offset = planes[name]
        np.testing.assert_allclose(points[piece == number, axis], offset, atol=1e-9)
    rug = points[piece == ROOM_SURFACES.index("rug")][:, [0, 2]]
    assert np.all((rug > world.rug[:, 0]) & (rug < world.rug[:, 1]))
    np.testing.assert_allclose(world.view @ world.view.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(world.view) == pytest.approx(1)


def test_shadows_and_falling_light():
    """A ball darkens the floor behind it, seen from the lamp; far floor is darker."""
    ball = stretched("ball", (0.15, 0.15, 0.15), np.array([0.6, 0.6, 2.5]))
    lit, shaded = render(world_of()), render(world_of(ball))
    lamp = np.array([-0.8, 2.1, 0.2])
    along = ball.centre - lamp
    spot = lamp + along * (lamp[1] / -along[1])  # where the line through the ball meets the floor
    row, column = pixel(spot)
    assert shaded.owner[row, column] == ROOM_SURFACES.index("floor")
    around = np.s_[row - 1 : row + 2, column - 1 : column + 2]
    assert shaded.image[around].mean() < 0.85 * lit.image[around].mean()
    assert lit.image[-4:].mean() > 1.1 * lit.image[78:82, 50:70].mean()


def test_hidden_solids_are_left_out():
    front = stretched("box", (0.5, 0.5, 0.1), np.array([0.0, 1.5, 2.0]))
    behind = stretched("ball", (0.2, 0.2, 0.2), np.array([0.0, 1.5, 3.5]))
    beside = stretched("cone", (0.2, 0.3, 0.2), np.array([-0.9, 0.3, 3.5]))
    scene = render(world_of(behind, front, beside))
    kept = [SCENE_CLASSES[k] for k in scene.classes[FIRST_SOLID:]]
    assert kept == ["box", "cone"]
    assert set(np.unique(scene.owner)) >= {FIRST_SOLID, FIRST_SOLID + 1}


def test_paint_does_not_leave_its_two_colours():
    rng = np.random.default_rng(3)
    points = rng.uniform(-2, 2, (500, 3))
    for _ in range(12):
        skin = random_skin(rng, rng.uniform(0.2, 0.8, 3))
        painted = skin.paint(points)
        assert np.all(painted >= skin.colours.min(axis=0) - 1e-12)
        assert np.all(painted <= skin.colours.max(axis=0) + 1e-12)


def test_classes_and_saliency_are_balanced_enough():
    scenes = [make_room_scene(0, "train", i, SIZE) for i in range(30)]
    owners = [k for scene in scenes for k in scene.classes[FIRST_SOLID:]]
    counts = {name: owners.count(SCENE_CLASSES.index(name)) for name in SOLID_CLASSES}
    assert min(counts.values()) >= 5
    assert 1.5 <= len(owners) / len(scenes) <= 6
    assert np.mean([scene.saliency.any() for scene in scenes]) > 0.8
    assert np.mean([scene.parts.any() for scene in scenes]) > 0.5

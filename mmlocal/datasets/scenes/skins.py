"""Colours and patterns of surfaces, in metres along the surface."""

from dataclasses import dataclass

import cv2
import numpy as np

# Hues of the four classes of solids are 90 degrees apart, so the nearest one is right for 87 %.
HUE_SPREAD = 30.0  # standard deviation around the hue of a class, in degrees
VIVID = (0.65, 1.0)  # saturation of salient solids
DULL = (0.1, 0.3)  # saturation of all others
SKIN_HUE = 24.0


@dataclass(frozen=True)
class Skin:
    """A pattern of two colours.

    Args:
        colours: ``(2, 3)`` RGB in [0, 1].
        pattern: ``"plain"``, ``"stripes"``, ``"checker"``, ``"clouds"`` or ``"tiles"``.
        waves: ``(K, 3)`` wave vectors in radians per metre; ``"tiles"`` has the frequencies of its
            two axes in the first row.
        phases: ``(K,)`` in radians.
    """

    colours: np.ndarray
    pattern: str
    waves: np.ndarray
    phases: np.ndarray

    def paint(self, points: np.ndarray) -> np.ndarray:
        """Compute the colours ``(N, 3)`` at ``(N, 3)`` points in metres."""
        if self.pattern == "plain":
            mix = np.zeros(len(points))
        elif self.pattern == "tiles":  # dark joints, sharp, at every whole number of waves
            turns = points * self.waves[0] / (2 * np.pi) + self.phases[:3]
            joint = np.abs(turns - np.rint(turns))[:, self.waves[0] > 0].min(axis=1)
            mix = np.clip(1.5 - 20 * joint, 0, 1)
        else:
            waves = np.sin(points @ self.waves.T + self.phases)
            if self.pattern == "stripes":
                mix = 0.5 + 0.5 * np.tanh(3 * waves[:, 0])
            elif self.pattern == "checker":
                mix = 0.5 + 0.5 * np.tanh(6 * waves.prod(axis=1))
            else:
                mix = 0.5 + 0.5 * waves.mean(axis=1)
        return self.colours[0] + mix[:, None] * (self.colours[1] - self.colours[0])


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """Make RGB ``(3,)`` in [0, 1] of a hue in degrees, a saturation and a value in [0, 1]."""
    hsv = np.array([[[hue % 360, saturation, value]]], dtype=np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)


def random_skin(rng: np.random.Generator, base: np.ndarray, contrast: float = 0.25) -> Skin:
    """Draw a pattern for a colour. The pattern tells nothing about what wears it.

    Args:
        rng: source of all randomness.
        base: ``(3,)`` RGB in [0, 1].
        contrast: largest relative change of the second colour.

    Returns:
        The skin.
    """
    pattern = ("plain", "stripes", "checker", "clouds")[rng.integers(4)]
    second = np.clip(base * (1 + rng.uniform(-contrast, contrast)), 0, 1)
    period = rng.uniform(0.12, 0.4)
    directions = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    waves = 2 * np.pi / period * directions
    if pattern == "clouds":
        waves = rng.uniform(0.3, 1.2, (3, 1)) * waves
    return Skin(np.stack([base, second]), pattern, waves, rng.uniform(0, 2 * np.pi, 3))


def tiles(rng: np.random.Generator, base: np.ndarray, side: float, axes: tuple[int, int]) -> Skin:
    """Make square tiles with darker joints, whose side is always the same number of metres.

    Args:
        rng: source of all randomness.
        base: ``(3,)`` RGB in [0, 1].
        side: side of a tile in metres.
        axes: the two axes in which the tiles repeat.

    Returns:
        The skin.
    """
    waves = np.zeros((1, 3))
    waves[0, list(axes)] = 2 * np.pi / side
    joint = base * rng.uniform(0.55, 0.75)
    return Skin(np.stack([base, joint]), "tiles", waves, rng.uniform(0, 1, 3))

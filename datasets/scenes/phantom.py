"""Procedural scenes: shapes with textures before a background, no files, the same scene from the same number
(docs/rp-pgd.md, Method 14).

Lengths are shares of the image's side: the same number shows the same scene at any size.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from ..images import IGNORED
from .files import Scene

FloatArray = npt.NDArray[np.float32]
CLASSES = ("background", "disc", "square", "triangle", "ring", "cross")
SMALLEST, LARGEST = 0.05, 0.35
"""Radius of an object, half its width."""
OBJECTS = (3, 6)
"""Fewest and most objects of a scene."""
BORDER = 0.005
"""Width of the ignored border on each side of an edge; at least one pixel. VOC's is 5 pixels of 500 in all."""
CLUTTER = 6
"""Streaks without a class on every background."""


def scene_phantom(number: int, size: int = 128) -> Scene:
    """The scene of one number: an RGB photograph [3, size, size] and its labels, ignored at borders as in VOC.

    A class has a shape and a texture (disc: stripes, square: checks, triangle: dots, ring: rings, cross: grain). What
    makes it hard to find, as in photographs:

    - both colours of a texture, and of the background's clouds, are drawn for each object: colour says nothing;
    - objects turn, and hide each other, the later the earlier; they leave the image at its sides;
    - their radius is 0.05 to 0.35 of the side, small ones more often, so that small and large ones have to be seen;
    - streaks of the background have an object's contrast, but belong to no class;
    - light falls off in one direction; there is noise.

    Args:
        number: 0 or more.
        size: pixels along each side, at least 16; 8 k + 1, such as 129, fits networks of stride 8.

    Raises:
        ValueError: a negative number or a smaller size.
    """
    if number < 0 or size < 16:
        raise ValueError(f"number {number} must not be negative, and size {size} must be at least 16 pixels")
    rng = np.random.default_rng(int.from_bytes(b"scene", "big") + number)
    steps = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    image = _mixed(rng, _clouds(rng, size))
    for _ in range(CLUTTER):
        middle, angle = rng.uniform(0, 1, 2), rng.uniform(0, math.pi)
        u, v = _turned(y - middle[0], x - middle[1], angle)
        streak = (np.abs(u) < rng.uniform(0.1, 0.3)) & (np.abs(v) < rng.uniform(0.008, 0.02))
        image[streak] = rng.uniform(0, 1, 3)
    objects = np.zeros((size, size), np.uint8)
    label = np.zeros((size, size), np.uint8)
    for count in range(1, 1 + int(rng.integers(*OBJECTS, endpoint=True))):
        kind = int(rng.integers(1, len(CLASSES)))
        radius = SMALLEST * (LARGEST / SMALLEST) ** rng.uniform(0, 1)
        middle, angle = rng.uniform(0.08, 0.92, 2), rng.uniform(0, 2 * math.pi)
        u, v = _turned((y - middle[0]) / radius, (x - middle[1]) / radius, angle)
        inside = SHAPES[kind - 1](u, v)
        pattern = TEXTURES[kind - 1](u * radius, v * radius, rng.uniform(0.045, 0.065), rng)
        image[inside] = _mixed(rng, pattern)[inside]
        label[inside], objects[inside] = kind, count
    light = 1 + rng.uniform(0, 0.4) * (_turned(y - 0.5, x - 0.5, rng.uniform(0, 2 * math.pi))[0])
    image = image * light[..., None] + rng.normal(0, 0.03, image.shape).astype(np.float32)
    width = 2 * max(1, round(BORDER * size)) + 1
    edges = ndimage.maximum_filter(objects, width) != ndimage.minimum_filter(objects, width)
    label[edges] = IGNORED
    photograph = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return Scene(f"scene_{number:06d}", torch.from_numpy(photograph.transpose(2, 0, 1).copy()), torch.from_numpy(label))


def _turned(y: FloatArray, x: FloatArray, angle: float) -> tuple[FloatArray, FloatArray]:
    """Coordinates (u, v) of (y, x) in axes turned by the angle, in radians."""
    return math.cos(angle) * y + math.sin(angle) * x, math.cos(angle) * x - math.sin(angle) * y


def _mixed(rng: np.random.Generator, pattern: FloatArray) -> FloatArray:
    """Two colours [size, size, 3], drawn anew and apart from each other, mixed by a pattern in [0, 1]."""
    first = rng.uniform(0, 1, 3)
    second = (first + rng.choice((-1, 1), 3) * rng.uniform(0.3, 0.6, 3)) % 1
    mixed: FloatArray = (first + pattern[..., None] * (second - first)).astype(np.float32)
    return mixed


def _clouds(rng: np.random.Generator, size: int) -> FloatArray:
    """Smooth random pattern in [0, 1]."""
    coarse = rng.uniform(0, 1, (9, 9)).astype(np.float32)
    at = np.linspace(1, 7, size, dtype=np.float32)
    smooth: FloatArray = ndimage.map_coordinates(coarse, np.meshgrid(at, at, indexing="ij"), order=3)
    return np.clip(smooth, 0, 1)


# -- shapes in units of their radius ---------------------------------------------------------------------------------

Shape = Callable[[FloatArray, FloatArray], npt.NDArray[np.bool_]]


def _disc(u: FloatArray, v: FloatArray) -> npt.NDArray[np.bool_]:
    return u**2 + v**2 < 1


def _square(u: FloatArray, v: FloatArray) -> npt.NDArray[np.bool_]:
    return np.maximum(np.abs(u), np.abs(v)) < 0.9


def _triangle(u: FloatArray, v: FloatArray) -> npt.NDArray[np.bool_]:
    return (u < 0.65) & (math.sqrt(3) * np.abs(v) - u < 1.3)


def _ring(u: FloatArray, v: FloatArray) -> npt.NDArray[np.bool_]:
    radius = u**2 + v**2
    return (radius < 1) & (radius > 0.45**2)


def _cross(u: FloatArray, v: FloatArray) -> npt.NDArray[np.bool_]:
    return (np.maximum(np.abs(u), np.abs(v)) < 1) & (np.minimum(np.abs(u), np.abs(v)) < 0.38)


SHAPES: tuple[Shape, ...] = (_disc, _square, _triangle, _ring, _cross)

# -- textures in shares of the side ----------------------------------------------------------------------------------

Texture = Callable[[FloatArray, FloatArray, float, np.random.Generator], FloatArray]


def _wave(at: FloatArray, period: float) -> FloatArray:
    wave: FloatArray = 0.5 + 0.5 * np.tanh(3 * np.sin(2 * math.pi / period * at))
    return wave


def _stripes(u: FloatArray, v: FloatArray, period: float, rng: np.random.Generator) -> FloatArray:
    return _wave(u, period)


def _checks(u: FloatArray, v: FloatArray, period: float, rng: np.random.Generator) -> FloatArray:
    checks: FloatArray = np.abs(_wave(u, 1.4 * period) - _wave(v, 1.4 * period))
    return checks


def _dots(u: FloatArray, v: FloatArray, period: float, rng: np.random.Generator) -> FloatArray:
    dots: FloatArray = np.minimum(_wave(u, period), _wave(v, period))
    return dots


def _rings(u: FloatArray, v: FloatArray, period: float, rng: np.random.Generator) -> FloatArray:
    return _wave(np.hypot(u, v), period)


def _grain(u: FloatArray, v: FloatArray, period: float, rng: np.random.Generator) -> FloatArray:
    cells = 1 + int(1 / period)
    grains = rng.integers(0, 2, (2 * cells, 2 * cells)).astype(np.float32)
    rows, columns = (np.floor(3 * at / period).astype(int) % (2 * cells) for at in (u, v))
    drawn: FloatArray = grains[rows, columns]
    return drawn


TEXTURES: tuple[Texture, ...] = (_stripes, _checks, _dots, _rings, _grain)

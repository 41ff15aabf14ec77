"""Procedural volumes of three tasks: no files, the same volume from the same number (docs/seat.md, Method 7).

Coordinates are voxels of 1 mm from the middle of the volume: x to the right, y to the front, z to the head.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from ..sample import Sample

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
CSF, GREY, WHITE = 0.15, 0.5, 0.8
"""Brightness of fluid, grey and white matter in a T1-weighted image, 1 the brightest tissue."""
TAIL = 0.06
"""By how much the tail of the hippocampus is darker."""
BRAIN_TISSUE = {
    "white": (0.48, 0.70, 0.70, 0.40),
    "grey": (0.62, 0.50, 0.52, 0.55),
    "fluid": (0.10, 0.15, 0.15, 0.95),
    "vessel": (0.35, 0.50, 0.90, 0.25),
    "old lesion": (0.82, 0.46, 0.46, 0.74),
    "edema": (0.76, 0.48, 0.48, 0.72),
    "core": (0.60, 0.32, 0.34, 0.80),
    "enhancing": (0.66, 0.42, 0.85, 0.65),
}
"""Brightness in FLAIR, T1w, T1gd, T2w."""


def hippocampus_phantom(number: int) -> Sample:
    """Volume number `number` (0 or more): image float32 [1, X, Y, Z] of about 36 x 50 x 36, label uint8 0/1/2.

    A bent body of grey matter with a thick, hooked head (1) and a thin, rising, slightly darker tail (2), divided by a
    tilted plane. What makes it hard, as in patients:

    - grey matter elsewhere is as bright: cortex around it, and an amygdala that touches its front;
    - it lies at any place within 5 voxels, turned by up to 25 degrees, 0.8 to 1.2 times as large;
    - white matter above and fluid beside it are rims of a voxel or two, here and there;
    - the scanner: noise, partial volume, shading, contrast, and a unit that differs by a factor of up to 10,000; bright
      fat in some volumes, so that the volume's own range says little of the brightness of tissue.

    Raises:
        ValueError: a negative number.
    """
    rng = _generator(number)
    shape = tuple(int(rng.integers(low, low + 9)) for low in (32, 46, 32))
    space = _Space(shape, rng, shift=(5, 5, 5), degrees=25, size=(0.8, 1.2), bend=1.2)
    x, y, z = space.bent
    length = rng.uniform(17, 21)
    t = np.clip(y / length, -1, 1)  # -1 the back, 1 the front
    thick = (rng.uniform(5.0, 6.0) + rng.uniform(1.6, 2.6) * t) * np.sqrt(1 - t**4 + 1e-9)
    side = rng.uniform(2, 5) * (t**2 - 0.5) + rng.uniform(2, 4) * np.maximum(t, 0) ** 2  # the head is a hook
    rise = rng.uniform(-3, -1) * (t**2 - 0.5) + rng.uniform(4, 8) * np.minimum(t, 0) ** 2  # the tail rises
    away = np.sqrt(((x - side) / 1.15) ** 2 + ((z - rise) / 0.9) ** 2) / np.maximum(thick, 0.1)
    inside = (away < 1) & (np.abs(y) < length)
    front = y + rng.uniform(-0.3, 0.3) * z + rng.uniform(-0.3, 0.3) * x > rng.uniform(-1, 3)

    tissue = _cortex(shape, rng)
    rim = (away >= 1) & (away < 1.35) & (np.abs(y) < length)
    patchy = _smooth_field(shape, rng, 1.0)
    tissue[rim & (z - rise > 0) & (patchy > -0.5)] = WHITE
    tissue[rim & (x - side > 0) & (z - rise < 2) & (patchy < 0.6)] = CSF
    amygdala = ((x - rng.uniform(-3, 1)) / 7) ** 2 + ((y - length - 2) / 7) ** 2 + ((z - 5) / 6) ** 2 < 1
    tissue[amygdala] = GREY
    tissue[inside] = GREY + rng.normal(0, 0.02)
    tissue[inside & ~front] -= TAIL
    image = _scan(tissue ** rng.uniform(0.85, 1.2), _shading(shape, rng), rng, noise=(0.04, 0.09))
    if rng.random() < 0.5:  # fat in a corner of the volume
        corner = sum(((axis / half) - sign) ** 2 for axis, half, sign in space.corners(rng))
        image[corner < 0.2] *= rng.uniform(1.3, 2.2)
    image *= 10 ** rng.uniform(1, 5)
    label = np.where(inside, np.where(front, 1, 2), 0).astype(np.uint8)
    return _sample(number, image[None], label)


def brain_phantom(number: int) -> Sample:
    """Volume number `number` (0 or more): FLAIR, T1w, T1gd, T2w as float32 [4, X, Y, Z] of about 48 x 48 x 40, label
    uint8 0..3: edema 1, core that does not enhance 2, core that does 3.

    One tumour with edema in a brain of grey and white matter with ventricles; beyond the brain all is 0. What makes it
    hard, as in patients:

    - no channel shows a class alone: edema is bright in FLAIR and T2w, as old lesions are, which are no tumour; the
      enhancing core is bright in T1gd, as vessels are; fluid is as bright in T2w as the core;
    - the tumour lies anywhere in the brain, about 12 to 22 voxels wide, and its core anywhere in its edema;
    - the scanner: noise, shading and a unit of each channel by itself.

    Raises:
        ValueError: a negative number.
    """
    rng = _generator(number)
    shape = tuple(int(rng.integers(low, low + 5)) for low in (46, 46, 38))
    space = _Space(shape, rng, shift=(2, 2, 2), degrees=10, size=(0.9, 1.05), bend=1.5)
    x, y, z = space.bent
    radius = np.sqrt((x / 19) ** 2 + (y / 21) ** 2 + (z / 17) ** 2)
    brain = radius < 1
    white, grey, fluid, vessel, old, *tumour = range(1, 1 + len(BRAIN_TISSUE))  # 0: beyond the brain
    kind = np.full(shape, white, np.uint8)
    kind[(radius > 0.82) | (np.abs(_smooth_field(shape, rng, 1.0)) < 0.25)] = grey
    kind[np.sqrt(((np.abs(x) - 4) / 2.2) ** 2 + (y / 9) ** 2 + ((z - 1) / 4) ** 2) < 1] = fluid
    kind[(np.abs(_smooth_field(shape, rng, 1.0)) < 0.05) & (np.abs(_smooth_field(shape, rng, 1.0)) < 0.4)] = vessel
    kind[np.sqrt(((np.abs(x) - 4) / 4) ** 2 + ((np.abs(y) - 10) / 3) ** 2 + ((z - 1) / 4) ** 2) < 1] = old  # caps
    for spot in _inside(radius, rng, 0.9, int(rng.integers(3, 12))):
        kind[_distance(space.grid, spot) < rng.uniform(1.5, 3.5)] = old
    label = np.zeros(shape, np.uint8)
    (middle,), reach = _inside(radius, rng, 0.75), rng.uniform(6, 11)
    lumpy = 1 + _smooth_field(shape, rng, 0.18)
    outer = _distance(space.grid, middle) * lumpy < reach
    core = middle + rng.normal(0, 0.15, 3) * reach
    to_core = _distance(space.grid, core) * (1 + _smooth_field(shape, rng, 0.15))
    deep = rng.uniform(0.5, 0.75) * reach
    label[outer & brain] = 1
    label[(to_core < deep) & outer & brain] = 3
    label[(to_core < deep * rng.uniform(0.55, 0.85)) & outer & brain] = 2
    for k, of_class in zip((1, 2, 3), tumour, strict=True):
        kind[label == k] = of_class
    kind[~brain] = 0
    levels = np.array([(0.0,) * 4, *BRAIN_TISSUE.values()], np.float32)
    levels[1:] = (levels[1:] + rng.normal(0, 0.03, levels[1:].shape)).clip(0.02) ** rng.uniform(0.85, 1.2, 4)
    shading, channels = _shading(shape, rng), []
    for channel in range(4):
        image = _scan(levels[kind, channel], shading, rng, noise=(0.03, 0.08)) * 10 ** rng.uniform(1, 4)
        channels.append(np.where(brain, image, 0))
    return _sample(number, np.stack(channels), label)


def toy_phantom(number: int) -> Sample:
    """Volume number `number` (0 or more): image float32 [1, 16, 16, 16], label uint8 0/1: a bright ball in noise.

    Its radius is 3 to 5 voxels, its middle anywhere within 3 voxels of the volume's. It is twice the deviation of the
    noise brighter, so that a threshold finds much of it: for tests alone.

    Raises:
        ValueError: a negative number.
    """
    rng = _generator(number)
    shape = (16, 16, 16)
    grid = _grid(shape)
    ball = _distance(grid, rng.uniform(-3, 3, 3)) < rng.uniform(3, 5)
    image = 2.0 * ball + rng.standard_normal(shape)
    return _sample(number, image[None], ball.astype(np.uint8))


PHANTOMS: dict[str, Callable[[int], Sample]] = {
    "Task01_BrainTumour": brain_phantom,
    "Task04_Hippocampus": hippocampus_phantom,
    "Toy": toy_phantom,
}
"""Phantom of each task that has one, by the task's name."""


@lru_cache(maxsize=256)
def drawn_phantom(task: str, number: int) -> Sample:
    """The phantom of this number, drawn once per process (the last 256 are kept); not to be changed."""
    return PHANTOMS[task](number)


class _Space:
    """Coordinates of a volume: `grid` straight; `bent` shifted, turned, scaled and bent by a smooth field."""

    def __init__(
        self,
        shape: tuple[int, ...],
        rng: np.random.Generator,
        shift: tuple[float, float, float],
        degrees: float,
        size: tuple[float, float],
        bend: float,
    ) -> None:
        self.grid = _grid(shape)
        moved = [axis - rng.uniform(-1, 1) * most for axis, most in zip(self.grid, shift, strict=True)]
        for a, b in ((1, 2), (0, 2), (0, 1)):
            angle = np.radians(rng.uniform(-degrees, degrees))
            turned = np.cos(angle) * moved[a] - np.sin(angle) * moved[b]
            moved[b] = np.sin(angle) * moved[a] + np.cos(angle) * moved[b]
            moved[a] = turned
        scale = rng.uniform(*size)
        self.bent = [axis / scale + _smooth_field(shape, rng, bend) for axis in moved]

    def corners(self, rng: np.random.Generator) -> list[tuple[Array, float, int]]:
        """Each axis with half its length and the sign of a random corner."""
        return [(axis, axis.size / 2, int(rng.choice((-1, 1)))) for axis in self.grid]


def _generator(number: int) -> np.random.Generator:
    if number < 0:
        raise ValueError(f"phantom number {number} must not be negative")
    return np.random.default_rng(number)


def _grid(shape: tuple[int, ...]) -> list[Array]:
    """Coordinates from the middle, [X, 1, 1], [1, Y, 1], [1, 1, Z]."""
    axes = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def _distance(grid: list[Array], centre: npt.ArrayLike) -> Array:
    squared: Array = sum((axis - c) ** 2 for axis, c in zip(grid, np.asarray(centre, np.float32), strict=True))
    return np.sqrt(squared)


def _inside(radius: Array, rng: np.random.Generator, most: float, number: int = 1) -> npt.NDArray[np.float64]:
    """Random voxels where `radius` is below `most`, as coordinates [number, 3] from the middle."""
    voxels = np.flatnonzero(radius < most)
    chosen = np.stack(np.unravel_index(rng.choice(voxels, number), radius.shape), axis=1)
    places: npt.NDArray[np.float64] = chosen - (np.array(radius.shape) - 1) / 2
    return places


def _smooth_field(shape: tuple[int, ...], rng: np.random.Generator, amplitude: float) -> Array:
    """Smooth noise with standard deviation of about `amplitude`: random values about 9 voxels apart."""
    knots = [round(n / 9) + 2 for n in shape]
    values = torch.from_numpy(rng.normal(0, amplitude, (1, 1, *knots)).astype(np.float32))
    field: Array = F.interpolate(values, size=shape, mode="trilinear", align_corners=True)[0, 0].numpy()
    return field


def _cortex(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Brightness of folded grey and white matter with fluid in the folds."""
    folds = _smooth_field(shape, rng, 1.0)
    return np.where(folds < -0.4, WHITE, np.where(folds < 0.8, GREY, CSF)).astype(np.float32)


def _shading(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Factor near 1 by which brightness rises and falls over a volume."""
    shading: Array = 1 + 0.12 * np.clip(_smooth_field(shape, rng, 0.6), -1.5, 1.5)
    return shading


def _scan(tissue: Array, shading: Array, rng: np.random.Generator, noise: tuple[float, float]) -> Array:
    """Image of the tissue: partial volume, shading, noise; not negative."""
    image = ndimage.gaussian_filter(tissue, 0.6, truncate=2) * shading
    image += np.float32(rng.uniform(*noise)) * rng.standard_normal(tissue.shape, dtype=np.float32)
    scanned: Array = np.maximum(image, 0).astype(np.float32)
    return scanned


def _sample(number: int, image: npt.NDArray[np.floating], label: npt.NDArray[np.uint8]) -> Sample:
    return Sample(
        id=f"phantom_{number:05d}",
        image=torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)),
        label=torch.from_numpy(label),
        spacing_mm=(1.0, 1.0, 1.0),
        origin="phantom",
    )

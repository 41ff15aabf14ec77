"""A procedural liver CT with tumours: no files, the same volume from the same number (docs/spars.md, Method 11).

Coordinates are mm in a patient of mean size from the middle of the trunk, RAS+: x to the patient's right, y to the
front, z to the head. Every patient is of another size, and lies elsewhere in the volume.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from ..sample import Sample
from .lattice import Triple
from .lesions import LIVER, TUMOUR, BoolArray, FloatArray, LesionConfig, lesion_field

SHAPE: Triple = (64, 64, 48)
SPACING_MM = (4.0, 4.0, 4.0)
AFFINE = np.diag((*SPACING_MM, 1.0))
"""Voxel index to mm, RAS+: the origin is the middle of the volume."""
AFFINE[:3, 3] = -(np.array(SHAPE) - 1) / 2 * SPACING_MM

SIZE = (0.9, 1.4)
"""Range of a patient's size, 1 the mean."""
LIVER_MM = (25.0, 8.0, 10.0)
"""The middle of the mean patient's liver."""
PLACE_MM = (80.0, 80.0, 58.0)
"""Largest distance of the liver's middle from the middle of the volume, along each axis."""

AIR, LUNG, GAS, FAT, MUSCLE, CANAL, BONE = -1000.0, -850.0, -950.0, -100.0, 55.0, 20.0, 320.0
TUMOURS = LesionConfig(
    number=(1, 3),
    diameter_mm=(32.0, 72.0),
    contrast_hu=(-40.0, -15.0),
    edge_mm=3.5,
    texture_hu=5.0,
    texture_mm=6.0,
    irregularity=0.25,
)


class Phase(NamedTuple):
    """Attenuation of the organs at one delay after the contrast agent, in HU."""

    liver: float
    spleen: float
    kidney: float
    artery: float
    portal_vein: float
    hepatic_vein: float


PHASES = {
    "plain": Phase(58, 48, 32, 42, 42, 42),
    "arterial": Phase(75, 115, 150, 280, 95, 50),
    "portal": Phase(110, 118, 170, 150, 165, 155),
    "late": Phase(90, 92, 130, 105, 100, 98),
}


def liver_phantom(index: int, tumours: bool = True) -> Sample:
    """Volume number `index` (0 or more): image float32 [1, 64, 64, 48] in HU at 4 mm, label uint8 0/1/2.

    1 to 3 tumours (2) of radius 4 to 9 voxels lie in the liver (1). What makes them hard to find, as in patients:

    - contrast phase: plain, arterial, portal or late; the liver lies between 35 and 125 HU, so a tumour of one patient
      has the attenuation of the liver, the muscle or the spleen of another; tumours are only 15 to 40 HU darker;
    - fatty liver: every fourth liver is 10 to 25 HU darker than its phase says; a focal fatty area is darker still;
    - vessels: portal and hepatic veins are bright, equal, or (arterial, plain) as dark as a tumour, but thin;
    - cysts: near water, round, sharp and smooth, labelled liver; the gallbladder looks like one beside the liver;
    - neighbours of overlapping attenuation: stomach and bowel (fluid, gas, food), spleen, kidneys, muscle, fat;
    - the scanner: noise, beam hardening (a dark or bright middle), streaks from metal, partial volume;
    - place: the field of view is set anywhere about the liver, which may lie in a corner of it, cut off at its border;
      size and shape of patient and liver vary, and tumours lie anywhere in the liver. The mean tumour map of other
      phantoms, or the position of a window alone, says little of where a tumour is.

    tumours: False leaves them out, of the same patient.

    Raises:
        ValueError: a negative index.
    """
    if index < 0:
        raise ValueError(f"phantom number {index} must not be negative")
    rng = np.random.default_rng(index)
    phase = PHASES[rng.choice(list(PHASES))]
    space = _Space(rng)
    hu, cavity = _body(space, rng)
    liver = _organs(hu, cavity, phase, space, rng)
    level = max(35.0, phase.liver + rng.normal(0, 6) - rng.uniform(10, 25) * (rng.random() < 0.25))
    hu[liver] = level
    # one area near the front is fatter than the rest, with no border to speak of
    hu -= liver * rng.uniform(0, 15) * np.exp(-(space.radius(rng.normal((20, 35, 10), 10), (25, 20, 25)) ** 2))

    lesions, tumour_mask = lesion_field(liver, SPACING_MM, TUMOURS, rng)
    if not tumours:
        lesions, tumour_mask = np.zeros_like(lesions), np.zeros_like(tumour_mask)
    free = liver & ~ndimage.binary_dilation(tumour_mask)
    cysts, cyst_mask = _cysts(free, level, rng)
    _vessels(hu, free & ~cyst_mask, phase, space, rng)
    image = _scan(hu + lesions + cysts, space, rng)

    label = np.where(liver, LIVER, 0).astype(np.uint8)
    label[tumour_mask] = TUMOUR
    return Sample(
        id=f"phantom_{index:05d}",
        image=torch.from_numpy(image)[None],
        label=torch.from_numpy(label),
        spacing_mm=SPACING_MM,
        affine=AFFINE,
        origin="phantom",
    )


class _Space:
    """Coordinates in mm: `grid` straight, and bent by a smooth field, so that no organ is an ellipsoid."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.size = size = rng.uniform(*SIZE)
        place = rng.uniform(-1, 1, 3) * PLACE_MM  # of the liver's middle in the volume, in mm
        axes = [
            ((np.arange(n) - (n - 1) / 2) * s - p) / size + c
            for n, s, p, c in zip(SHAPE, SPACING_MM, place, LIVER_MM, strict=True)
        ]
        self.grid = [axis.astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij", sparse=True)]
        self.bent = [axis + _smooth_field(rng, 7.0) for axis in self.grid]

    def radius(self, centre: npt.ArrayLike, radii: npt.ArrayLike) -> FloatArray:
        """Distance from `centre` in units of the `radii`, [X, Y, Z]: below 1 inside the (bent) ellipsoid.

        Two values instead of three make a cylinder along z.
        """
        axes = zip(self.bent, np.asarray(centre, np.float32), np.asarray(radii, np.float32), strict=False)
        squared: FloatArray = sum(((axis - c) / r) ** 2 for axis, c, r in axes)
        return np.sqrt(squared)


def _smooth_field(rng: np.random.Generator, amplitude: float) -> FloatArray:
    """Smooth noise with standard deviation of about `amplitude`, [X, Y, Z]: random values 12 voxels apart."""
    knots = torch.from_numpy(rng.normal(0, amplitude, (1, 1, 6, 6, 5)).astype(np.float32))
    field: FloatArray = F.interpolate(knots, size=SHAPE, mode="trilinear", align_corners=True)[0, 0].numpy()
    return field


def _body(space: _Space, rng: np.random.Generator) -> tuple[FloatArray, BoolArray]:
    """The trunk without its organs in HU, and the cavity that holds them: skin, fat, muscle, ribs, spine, lungs."""
    width, depth = rng.uniform(108, 122), rng.uniform(84, 98)
    fat, wall = rng.uniform(6, 16), rng.uniform(8, 12)
    shell = space.radius((0, 0), (width, depth))
    inner = 1 - fat / depth
    hu = np.where(shell < 1, FAT, AIR).astype(np.float32)
    hu[shell < inner] = MUSCLE
    x, y, z = space.bent
    rib = (shell < inner) & (np.sin((z + 0.3 * y + 0.1 * x) * (2 * np.pi / 26)) > 0.55)
    hu[rib] = BONE
    cavity = shell < inner - wall / depth
    hu[cavity] = FAT
    dome = rng.uniform(55, 70) - (x**2 + y**2) / 220
    hu[cavity & (z > dome)] = LUNG
    hu[space.radius((0, -62), (34, 20)) < 1] = MUSCLE
    hu[space.radius((0, -55), (19, 17)) < 1] = rng.uniform(150, 250)
    hu[space.radius((0, -76), (8, 7)) < 1] = CANAL
    return hu, cavity


def _organs(hu: FloatArray, cavity: BoolArray, phase: Phase, space: _Space, rng: np.random.Generator) -> BoolArray:
    """Paint everything around the liver into `hu` and return where the liver is, bool [X, Y, Z]."""
    jitter = rng.normal(0, 3, (8, 3))
    size = rng.uniform(0.88, 1.12, 8)

    def inside(number: int, centre: Triple, radii: npt.ArrayLike) -> BoolArray:
        within: BoolArray = space.radius(centre + jitter[number], np.multiply(radii, size[number])) < 1
        return within & cavity

    loops = _smooth_field(rng, 1.0)
    bowel = cavity & (space.bent[2] < -35) & (np.abs(loops) < 0.8)
    hu[bowel] = np.where(loops < -0.6, GAS, 30 + 30 * loops)[bowel]
    stomach = inside(0, (-42, 25, 5), (34, 28, 38))
    hu[stomach] = rng.uniform(0, 60)
    hu[stomach & (space.grid[1] > rng.uniform(25, 50))] = GAS  # it rises to the front: the patient lies on the back
    hu[inside(1, (-68, -22, 15), (26, 34, 38))] = phase.spleen + rng.normal(0, 6)
    for number, side in ((2, -1), (3, 1)):
        kidney = inside(number, (side * 48, -42, -45), (24, 22, 42))
        hu[kidney] = phase.kidney + rng.normal(0, 8)
    hu[inside(4, (-8, -32, 0), (10, 10, 1000))] = phase.artery
    shape = rng.uniform(0.8, 1.15, (2, 3))  # a long right lobe, a small left one, ...
    liver = inside(5, (38, 4, 5), shape[0] * (60, 58, 62)) | inside(6, (-12, 28, 22), shape[1] * (58, 32, 32))
    gallbladder = inside(7, (28, 26, -44), (12, 16, 24))
    liver &= ~gallbladder & (space.radius((0, -62), (34, 24)) > 1)
    hu[gallbladder] = rng.uniform(0, 20)
    return liver


def _cysts(free: BoolArray, level: float, rng: np.random.Generator) -> tuple[FloatArray, BoolArray]:
    """Field in HU that turns voxels into 0 to 2 cysts of 0..15 HU (round, sharp, without texture), and their mask."""
    number = int(rng.integers(0, 2, endpoint=True))
    if number == 0:
        return np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
    water = LesionConfig(
        number=(1, number),
        diameter_mm=(12.0, 32.0),
        contrast_hu=(0 - level, 15 - level),
        edge_mm=0.5,
        texture_hu=0.0,
        irregularity=0.0,
    )
    return lesion_field(free, SPACING_MM, water, rng)


def _vessels(hu: FloatArray, free: BoolArray, phase: Phase, space: _Space, rng: np.random.Generator) -> None:
    """Paint two trees into the liver's `free` voxels: portal vein from the hilum, hepatic veins from the top."""
    voxels = np.nonzero(free)
    points = np.stack([np.broadcast_to(axis, SHAPE)[voxels] for axis in space.bent], axis=-1)  # [M, 3], mm
    values = hu[voxels]
    for root, level in (((15, 5, -10), phase.portal_vein), ((18, -25, 40), phase.hepatic_vein)):
        forks = rng.normal((40, 5, 8), (16, 16, 14), (4, 3))
        tips = forks[:, None] + rng.normal(0, 24, (4, 3, 3))
        starts = np.concatenate((np.broadcast_to(root, (4, 3)), np.repeat(forks, 3, axis=0)))  # [16, 3]
        ends = np.concatenate((forks, tips.reshape(-1, 3)))
        radii = np.repeat((6.0, 4.0), (4, 12))
        axis = (ends - starts).astype(np.float32)
        from_start = points[:, None] - starts.astype(np.float32)  # [M, 16, 3]
        along = np.clip((from_start * axis).sum(-1) / (axis**2).sum(-1), 0, 1)
        gap = np.linalg.norm(from_start - along[..., None] * axis, axis=-1) - radii
        voxels_away = gap.min(axis=1) * space.size / SPACING_MM[0]
        share = np.clip(0.5 - voxels_away, 0, 1)  # part of the voxel that the vessel fills
        values += share * (level - values)
    hu[voxels] = values


def _scan(tissue: FloatArray, space: _Space, rng: np.random.Generator) -> FloatArray:
    """CT image of the tissue: partial volume, noise, beam hardening, and in every other patient streaks."""
    x, y, z = space.grid
    tissue = tissue + _smooth_field(rng, 3.0) + rng.uniform(-8, 8) * ((x**2 + y**2) / 90**2 - 0.5)
    if rng.random() < 0.5:
        metal = rng.uniform(-80, 80, 3)
        angle = np.arctan2(y - metal[1], x - metal[0])
        fade = np.exp(-np.hypot(x - metal[0], y - metal[1]) / 60 - ((z - metal[2]) / 24) ** 2)
        tissue = tissue + rng.uniform(10, 40) * np.cos(rng.integers(5, 12) * angle + rng.uniform(0, 6)) * fade
    grain = rng.standard_normal(SHAPE, dtype=np.float32) * rng.uniform(18, 40)  # 6 to 14 HU once blurred
    image: FloatArray = ndimage.gaussian_filter((tissue + grain).astype(np.float32), 0.6, truncate=3)
    return np.maximum(image, AIR)

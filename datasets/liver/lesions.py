"""Hypodense lesions put into a liver, with exact masks: real anatomy and noise meet known truth.

A lesion is a ball whose radius varies with direction: R(u) = R · (1 + irregularity · bump(u)), bump in [-1, 1]. What is
added to the CT is profile · (contrast + texture), where profile falls from 1 to 0 across R(u) as a step blurred by a
Gaussian; the CT's own structures and noise stay underneath. The mask is where the step stands before it is blurred.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, special

from ...common.checks import AT_LEAST_0, AT_LEAST_1, BELOW_1, NEGATIVE, POSITIVE, check
from ..sample import Sample

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]

LIVER, TUMOUR = 1, 2
WAVES = 4
"""Plane waves summed to the bump; with WAVE_NUMBER they give two to four lobes around a lesion."""
WAVE_NUMBER = 3.0


@dataclass(frozen=True)
class LesionConfig:
    """Lesions that are put into each CT.

    Raises:
        ValueError: a range that does not ascend or leaves its bounds.
    """

    number: tuple[int, int] = (1, 3)
    """Fewest and most lesions in one liver."""
    diameter_mm: tuple[float, float] = (10.0, 40.0)
    """Smallest and largest diameter of the ball before it is deformed; capped by what fits into the liver."""
    contrast_hu: tuple[float, float] = (-60.0, -20.0)
    """Range of what is added inside a lesion, in HU; negative: darker than the liver around it."""
    edge_mm: float = 1.5
    """Standard deviation of the Gaussian that blurs the rim, in mm."""
    texture_hu: float = 5.0
    """Standard deviation of the smooth noise inside a lesion, in HU; 0 = none."""
    texture_mm: float = 3.0
    """Size of that texture: standard deviation of the Gaussian that smooths it, in mm."""
    irregularity: float = 0.2
    """Largest relative deviation of the radius from a ball, in [0, 1)."""

    def __post_init__(self) -> None:
        check(self, "implant_lesions.", number=AT_LEAST_1, diameter_mm=POSITIVE, contrast_hu=NEGATIVE)
        check(self, "implant_lesions.", edge_mm=POSITIVE, texture_hu=AT_LEAST_0, texture_mm=POSITIVE)
        check(self, "implant_lesions.", irregularity=(0, BELOW_1))
        for name in ("number", "diameter_mm", "contrast_hu"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"implant_lesions.{name} is {(low, high)} but must ascend")


def implant_lesions(sample: Sample, config: LesionConfig, seed: int) -> Sample:
    """A copy of a CT with lesions in its liver: image in HU, label 2 where they are, origin "implanted".

    Lesions lie inside the voxels of label 1 and do not touch each other. The same seed and sample id give the same
    lesions.

    Args:
        sample: image float32 [1, X, Y, Z] in HU, label uint8 [X, Y, Z] with 1 = liver, spacing in mm.
        config: number, diameter in mm, contrast in HU and texture of the lesions.
        seed: number of this version of the CT, 0 or more.

    Raises:
        ValueError: no label, no liver, or a liver too small for the smallest lesion.

    >>> from segarena.datasets.liver.lesions import LesionConfig, implant_lesions
    >>> from segarena.datasets.liver.phantom import liver_phantom
    >>> ct = liver_phantom(3000)
    >>> made = implant_lesions(ct, LesionConfig(number=(1, 1), diameter_mm=(20.0, 30.0)), seed=0)
    >>> made.id, made.origin, bool((made.label == 2).sum() > (ct.label == 2).sum())
    ('phantom_03000#0', 'implanted', True)
    """
    if sample.label is None:
        raise ValueError(f"{sample.id} has no label: lesions can only be put into a CT with a liver mask")
    rng = np.random.default_rng([seed, zlib.crc32(sample.id.encode())])
    x, y, z = sample.spacing_mm
    try:
        field, mask = lesion_field(sample.label.numpy() == LIVER, (x, y, z), config, rng)
    except ValueError as error:
        raise ValueError(f"{sample.id}: {error}") from error
    label = sample.label.clone()
    label[torch.from_numpy(mask)] = TUMOUR
    image = sample.image + torch.from_numpy(field)
    return replace(sample, id=f"{sample.id}#{seed}", image=image, label=label, origin="implanted")


def lesion_field(
    liver: BoolArray, spacing_mm: Spacing, config: LesionConfig, rng: np.random.Generator
) -> tuple[FloatArray, BoolArray]:
    """Field to add to a CT in HU, float32 [X, Y, Z], and the exact mask of the lesions, bool [X, Y, Z].

    liver: bool [X, Y, Z], where lesions may lie; spacing_mm: size of a voxel. Fewer lesions than drawn, but never fewer
    than `config.number[0]`, are made when no more fit.

    Raises:
        ValueError: `liver` is empty or has no room for the lesions.
    """
    field = np.zeros(liver.shape, dtype=np.float32)
    mask = np.zeros(liver.shape, dtype=bool)
    if not liver.any():
        raise ValueError("the label holds no liver (class 1) to put lesions into")
    box = ndimage.find_objects(liver.view(np.uint8))[0]
    origin = [side.start for side in box]
    # mm to the nearest voxel that is not liver; what lies outside the volume counts as not liver
    room = ndimage.distance_transform_edt(np.pad(liver[box], 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    swelling = 1 + config.irregularity
    gap = float(np.linalg.norm(spacing_mm))  # a voxel's diagonal: lesions do not even touch at corners
    for placed in range(rng.integers(*config.number, endpoint=True)):
        largest = 2 * room.max() / swelling
        if largest < config.diameter_mm[0]:
            if placed >= config.number[0]:
                break
            raise ValueError(
                f"the liver has room for {placed} lesion(s) of at least {config.diameter_mm[0]} mm (the next could be "
                f"{max(largest, 0):.1f} mm wide) but number asks for {config.number[0]}; lower diameter_mm or number"
            )
        fits = np.flatnonzero(room >= config.diameter_mm[0] / 2 * swelling)
        centre = np.unravel_index(fits[rng.integers(len(fits))], room.shape)  # first: lesions of any size lie anywhere
        diameter = max(config.diameter_mm[0], min(rng.uniform(*config.diameter_mm), 2 * room[centre] / swelling))
        reach = diameter / 2 * swelling
        _add_lesion(field, mask, np.add(centre, origin), diameter / 2, spacing_mm, config, rng)
        room = np.minimum(room, np.sqrt(_squared(_offsets(room.shape, centre, spacing_mm))) - reach - gap)
    return field, mask


def _add_lesion(
    field: FloatArray,
    mask: BoolArray,
    centre: npt.NDArray[np.intp],
    radius: float,
    spacing_mm: Spacing,
    config: LesionConfig,
    rng: np.random.Generator,
) -> None:
    """Add one lesion of `radius` mm around voxel `centre` to `field` and `mask`, in place."""
    half = np.ceil((radius * (1 + config.irregularity) + 3 * config.edge_mm) / np.array(spacing_mm)).astype(int)
    low = np.maximum(centre - half, 0)
    crop = tuple(slice(a, b) for a, b in zip(low, centre + half + 1, strict=True))
    offsets = _offsets(field[crop].shape, centre - low, spacing_mm)
    distance = np.sqrt(_squared(offsets))
    inside = distance - radius * (1 + config.irregularity * _bump(offsets, distance, rng))  # mm, negative inside
    profile = special.ndtr(-inside / config.edge_mm)
    texture = ndimage.gaussian_filter(rng.standard_normal(inside.shape), config.texture_mm / np.array(spacing_mm))
    texture *= config.texture_hu / texture.std()
    field[crop] += profile * (rng.uniform(*config.contrast_hu) + texture)
    mask[crop] |= inside < 0


def _offsets(shape: tuple[int, ...], centre: npt.ArrayLike, spacing_mm: Spacing) -> list[npt.NDArray[np.float64]]:
    """x, y, z in mm from voxel `centre`, as three arrays that broadcast to `shape`."""
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return [(axis - c) * s for axis, c, s in zip(grid, np.asarray(centre), spacing_mm, strict=True)]


def _squared(offsets: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    x, y, z = offsets
    squared: npt.NDArray[np.float64] = x**2 + y**2 + z**2
    return squared


def _bump(
    offsets: list[npt.NDArray[np.float64]], distance: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """A smooth function of direction in [-1, 1] that reaches one of its ends, [X, Y, Z]."""
    waves = rng.standard_normal((WAVES, 3))
    waves *= WAVE_NUMBER / np.linalg.norm(waves, axis=1, keepdims=True)
    away = np.maximum(distance, np.finfo(np.float64).tiny)
    bump = np.zeros_like(distance)
    for (a, b, c), phase in zip(waves, rng.uniform(0, 2 * np.pi, WAVES), strict=True):
        x, y, z = offsets
        bump += np.cos((a * x + b * y + c * z) / away + phase)
    bump /= np.abs(bump).max()
    return bump

"""From a scanner's picture to the image a network sees (docs/rl4seg.md, Method 10): sector, acquisition, resizing,
CLAHE."""

# scikit-image annotates only part of its functions
# mypy: disable-error-code=no-untyped-call

import hashlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import transform
from skimage.exposure import equalize_adapthist
from skimage.morphology import convex_hull_image

from ...common.checks import AT_LEAST_0, POSITIVE, SHARE, check
from .files import FloatArray, Spacing

CLIP_LIMIT = 0.01
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Acquisition:
    """Simulated change of scanner or of acoustic window.

    Echocardiograms are log-compressed: factors of the signal are added to the grey value. Grey values are 0 (black) to
    1 (white); outside the sector the image stays black. The fields are applied in their order; random parts depend on
    the image's id only.

    Raises:
        ValueError: a value outside its range.

    >>> import numpy as np
    >>> from segarena.datasets.echo.preparation import Acquisition, simulate_acquisition
    >>> grey = np.full((32, 32), 0.5, np.float32)
    >>> darker = simulate_acquisition(grey, (0.5, 0.5), Acquisition(gain=-0.25), "image_1")
    >>> darker.dtype, float(darker.max())
    (dtype('float32'), 0.25)
    """

    speckle: float = 0.0
    """Standard deviation of the added speckle as a share of the grey value; 0 or more."""
    speckle_mm: float = 1.5
    """Size of the grains of the speckle in mm; above 0."""
    wedges: int = 0
    """Number of dropout wedges, beams from the probe that ribs or lung shadow."""
    wedge_loss: float = 0.5
    """Grey lost in the middle of a wedge, 0..1."""
    attenuation: float = 0.0
    """Grey lost at the deepest row, growing evenly with depth; 0..1."""
    gain: float = 0.0
    """Grey added everywhere, -1..1."""
    gamma: float = 1.0
    """Exponent of the grey curve; above 1 makes dark darker, below 1 brighter."""

    def __post_init__(self) -> None:
        check(self, "acquisition.", speckle=AT_LEAST_0, speckle_mm=POSITIVE, wedges=AT_LEAST_0, wedge_loss=SHARE)
        check(self, "acquisition.", attenuation=SHARE, gain=(-1, 1), gamma=POSITIVE)


def sector(image: FloatArray) -> npt.NDArray[np.bool_]:
    """Where the scanner's sector lies, [Y, X]: the convex hull of the largest piece that is not black.

    Text and the ECG outside it are not part of it, unless they touch it; a picture without black margin is all sector.
    """
    step = max(1, min(image.shape) // 256)  # the hull is smooth: every few pixels suffice to find it
    lit = ndimage.binary_closing(np.pad(image[::step, ::step] > 0, 4), iterations=2)[4:-4, 4:-4]
    pieces, _ = ndimage.label(lit)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    hull = convex_hull_image(pieces == sizes.argmax())
    grown = ndimage.binary_dilation(hull) if step > 1 else hull
    rows, columns = (np.minimum(np.arange(n) // step, m - 1) for n, m in zip(image.shape, hull.shape, strict=True))
    inside: npt.NDArray[np.bool_] = grown[rows[:, None], columns]
    return inside


def without_surroundings(image: FloatArray) -> FloatArray:
    """The image [Y, X], black outside the sector, where text and the ECG stand."""
    inside: FloatArray = np.where(sector(image), image, np.float32(0))
    return inside


def simulate_acquisition(image: FloatArray, spacing_mm: Spacing, acquisition: Acquisition, image_id: str) -> FloatArray:
    """Image with simulated speckle, dropout, attenuation, gain and gamma: float32 [Y, X], black outside the sector.

    Args:
        image: float32 [Y, X] in [0, 1].
        spacing_mm: (y, x) of a pixel.
        acquisition: strength of each change.
        image_id: seeds speckle and wedges.
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(image_id.encode()).digest(), "big"))
    inside = sector(image)
    depth, angle = _beams(inside, spacing_mm)
    changed = image
    if acquisition.speckle:
        changed = _add_speckle(changed, spacing_mm, acquisition.speckle, acquisition.speckle_mm, rng)
    changed = _add_wedges(changed, angle, acquisition.wedges, acquisition.wedge_loss, rng)
    changed = _attenuate(changed, depth, acquisition.attenuation, spacing_mm)
    grey: FloatArray = np.where(inside, _adjust_gain(changed, acquisition.gain, acquisition.gamma), 0)
    return grey.astype(np.float32)


def _beams(inside: npt.NDArray[np.bool_], spacing_mm: Spacing) -> tuple[FloatArray, FloatArray]:
    """Depth below the probe in mm, [Y, 1], and angle from its axis in radians, [Y, X]; the probe is the middle of the
    sector's top row."""
    y, x = (np.arange(n, dtype=np.float32) * mm for n, mm in zip(inside.shape, spacing_mm, strict=True))
    top = int(inside.any(axis=1).argmax())
    probe_y, probe_x = top * spacing_mm[0], float(np.flatnonzero(inside[top]).mean()) * spacing_mm[1]
    depth = np.maximum(y - probe_y, 0)[:, None]
    return depth, np.arctan2(x - probe_x, depth + spacing_mm[0])


def _add_speckle(
    image: FloatArray, spacing_mm: Spacing, spread: float, grain_mm: float, rng: np.random.Generator
) -> FloatArray:
    """The image times 1 + Rayleigh noise of mean 0 and standard deviation `spread`, in grains of `grain_mm`."""
    grain = ndimage.gaussian_filter(
        rng.standard_normal((2, *image.shape), np.float32), (0, *(grain_mm / 2 / np.array(spacing_mm)))
    )
    rayleigh = np.hypot(*grain)
    speckled: FloatArray = image * (1 + spread / rayleigh.std() * (rayleigh - rayleigh.mean()))
    return speckled


def _add_wedges(image: FloatArray, angle: FloatArray, number: int, loss: float, rng: np.random.Generator) -> FloatArray:
    """The image less up to `loss` in each of `number` beams, 8 to 18 degrees wide, that may overlap."""
    for _ in range(number):
        middle, width = np.deg2rad(rng.uniform(-35, 35)), np.deg2rad(rng.uniform(4, 9))
        image = image - loss * np.exp(-(((angle - middle) / width) ** 4))
    return image


def _attenuate(image: FloatArray, depth: FloatArray, loss: float, spacing_mm: Spacing) -> FloatArray:
    """The image less a share of `loss` that grows evenly from 0 at the probe to 1 at the deepest row."""
    attenuated: FloatArray = image - loss * depth / max(depth.max(), spacing_mm[0])
    return attenuated


def _adjust_gain(image: FloatArray, gain: float, gamma: float) -> FloatArray:
    """clip(image + gain, 0, 1) to the power of gamma."""
    adjusted: FloatArray = np.clip(image + gain, 0, 1) ** gamma
    return adjusted


def resize(image: FloatArray, size: int) -> FloatArray:
    """The image stretched to size x size, linear (smoothed first where it shrinks)."""
    shrunk: FloatArray = transform.resize(image, (size, size), order=1, anti_aliasing=True)
    return shrunk


def resize_mask(mask: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """The mask stretched to size x size, nearest."""
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(int) for n in mask.shape)
    small: npt.NDArray[np.uint8] = mask[rows[:, None], columns]
    return small


def to_native(small: npt.NDArray[Scalar], shape: tuple[int, ...]) -> npt.NDArray[Scalar]:
    """A mask or map [size, size] stretched to `shape`, (Y, X), nearest; `resize_mask` of it is the mask again, where
    neither side of `shape` is smaller."""
    rows, columns = (((np.arange(n) + 0.5) * len(small) / n).astype(int) for n in shape)
    native: npt.NDArray[Scalar] = small[rows[:, None], columns]
    return native


def to_bytes(image: FloatArray, clahe: bool) -> npt.NDArray[np.uint8]:
    """The image [Y, X] in [0, 1] as bytes, 255 for 1, after CLAHE (8 x 8 tiles, 256 bins) where asked for."""
    grey: FloatArray = equalize_adapthist(np.clip(image, 0, 1), clip_limit=CLIP_LIMIT) if clahe else image
    quantised: npt.NDArray[np.uint8] = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    return quantised

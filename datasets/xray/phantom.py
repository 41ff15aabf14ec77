"""Procedural radiographs of limbs, whole or broken: no files, the same image from the same number
(docs/apga.md, Method 4).

Lengths are shares of the image's side, and coordinates (y, x) are 0 in its middle: the same number shows the same limb
at any size, with other noise.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...common.counted import uniform

FloatArray = npt.NDArray[np.float32]
CLASSES = ("normal", "abnormal")
IMAGES = 2
"""Images of a study: number n belongs to study n // 2. Studies of odd number are broken, in every image."""
SMALLEST = 32
"""Pixels of the smallest side at which a break can be seen."""
BREAK, LINE = (0.03, 0.045), (0.007, 0.012)
"""Half the width of a break, and of the lines that are none, at least and at most."""
MARGIN = 0.02
"""By which the box around a break is wider than the break itself, on each side."""
_STUDY, _IMAGE, _CLOUDS, _NOISE, _MARKER = (int.from_bytes(f"xray {k}".encode(), "big") for k in range(5))
"""Words of the streams of random numbers."""
_AT_ONCE = 2**18
"""Pixels that are drawn together: they fit into a cache."""


@dataclass(frozen=True, eq=False)
class Limbs:
    """Radiographs of N numbers."""

    images: Tensor
    """uint8 [N, size, size]."""
    labels: Tensor
    """int64 [N]: 0 normal, 1 abnormal (broken)."""
    roi: Tensor
    """bool [N, size, size]: the box around the break's own pixels, sides along the image's, `MARGIN` wider on each of
    them; nothing where no bone is broken."""
    marked: Tensor
    """bool [N]: there is a marker in the corner."""


def limb_phantoms(numbers: Tensor, size: int = 64, artefact: float | Tensor | None = None) -> Limbs:
    """The radiographs of these numbers; the same whichever others are drawn with them.

    One or two bones lie in soft tissue. Broken: a thin dark line runs obliquely, 35 to 55 degrees to the axis, across
    the shaft of one bone, and ends at its edge. What makes it hard to find, as in patients, is drawn with the same
    chances whether a bone is broken or not:

    - exposure, contrast and the fall of the beam towards one side differ from image to image: brightness says nothing;
    - noise of the detector, clouds of soft tissue, thick and thin limbs;
    - the limb is turned by up to 15 degrees, shifted, and its bones may end inside of the image;
    - growth plates: dark lines across a bone, but square to its axis;
    - canals of vessels: dark lines in a bone, but along its axis;
    - folds of skin: dark lines oblique to a bone, but running on into the soft tissue on both sides;
    - two bones may overlap, with bright and dark edges.

    Args:
        numbers: int64 [N], 0 or more, on the CPU.
        size: pixels along each side, at least 32.
        artefact: how often there is a marker in the upper left corner where a bone is broken, and none where none is;
            0.5 says nothing about the class. One share, or one of each image [N]. None: no markers, all else the same.

    Raises:
        ValueError: a negative number, a smaller size, or no share.

    >>> import torch
    >>> from segarena.datasets.xray.phantom import limb_phantoms
    >>> limbs = limb_phantoms(torch.arange(4), 32)
    >>> limbs.labels.tolist(), limbs.images.shape, limbs.roi.flatten(1).any(dim=1).tolist()
    ([0, 0, 1, 1], torch.Size([4, 32, 32]), [False, False, True, True])
    """
    labels = numbers // IMAGES % 2
    if artefact is None:
        marked = torch.zeros_like(labels, dtype=torch.bool)
    elif not bool((((share := torch.as_tensor(artefact)) >= 0) & (share <= 1)).all()):
        raise ValueError(f"artefact is {artefact} but must lie in [0, 1]; None draws no markers")
    else:
        marked = (labels == 1) == (uniform(numbers, 1, _MARKER)[:, 0] < share)
    images, roi = draw_limbs(numbers, labels == 1, size)
    if marked.any():
        edges = [round(size * share) for share in (0.04, 0.13, 0.05, 0.11)]
        corner = torch.zeros(size, size, dtype=torch.bool)
        corner[edges[0] : edges[1], edges[2] : edges[3]] = True
        images[marked[:, None, None] & corner] = 245
    return Limbs(images, labels, roi, marked)


def draw_limbs(numbers: Tensor, broken: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, size, size] of these numbers, and the boxes around their breaks, bool [N, size, size].

    Args:
        numbers: int64 [N], 0 or more, on the CPU.
        broken: bool [N]; all but the break is the same with and without.
        size: pixels along each side, at least 32.

    Raises:
        ValueError: a negative number or a smaller size.
    """
    if size < SMALLEST or (len(numbers) and int(numbers.min()) < 0):
        raise ValueError(
            f"size is {size} and the lowest number {int(numbers.min()) if len(numbers) else 0}, but they must be at "
            f"least {SMALLEST} pixels and 0"
        )
    at_once = max(1, _AT_ONCE // size**2)
    starts = range(0, max(1, len(numbers)), at_once)
    parts = [_draw(numbers[k : k + at_once], broken[k : k + at_once].numpy(), size) for k in starts]
    images, roi = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return torch.from_numpy(images), torch.from_numpy(roi)


class _Line(NamedTuple):
    """Lines across or along a bone, one for each image; each [N, 1, 1]."""

    y: FloatArray
    x: FloatArray
    """Middle."""
    along_y: FloatArray
    along_x: FloatArray
    """Direction, of length 1."""

    def coordinates(self, y: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Of each pixel [N, size, size]: along the line from its middle, and away from it."""
        y, x = y - self.y, x - self.x
        return self.along_y * y + self.along_x * x, self.along_y * x - self.along_x * y


class _Lanes:
    """Random numbers of each image, in the order in which they are asked for."""

    def __init__(self, items: Tensor, word: int, lanes: int = 64) -> None:
        self._numbers = uniform(items, lanes, word).numpy()
        self._next = 0

    def draw(self, low: float = 0.0, high: float = 1.0) -> FloatArray:
        """The next number of each image in [low, high), float32 [N, 1, 1]."""
        numbers = self._numbers[:, self._next, None, None]
        self._next += 1
        drawn: FloatArray = (low + (high - low) * numbers).astype(np.float32)
        return drawn

    def chance(self, share: float) -> FloatArray:
        """1 with this probability, else 0."""
        return (self.draw() < share).astype(np.float32)

    def sign(self) -> FloatArray:
        """-1 or 1."""
        return 2 * self.chance(0.5) - 1


def _draw(
    numbers: Tensor, broken: npt.NDArray[np.bool_], size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """As `draw_limbs`, of few numbers: float32 [N, size, size] throughout.

    Only sums, products, quotients and roots act on pixels: they round alike in a batch of any size.
    """
    study, image = _Lanes(numbers // IMAGES, _STUDY), _Lanes(numbers, _IMAGE)
    steps = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) - np.float32(0.5)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    clouds = _clouds(numbers, size)
    soft = 1 / size
    """Edges are as wide as a pixel, or more."""

    # the limb: soft tissue about an axis through `middle`
    two = study.chance(0.5)
    width: FloatArray = study.draw(0.11, 0.14) * (1 - 0.25 * two)
    thick = study.draw(0.28, 0.42)
    angle = image.draw(-15, 15)
    limb = _Line(image.draw(-0.1, 0.1), image.draw(-0.18, 0.18), *_direction(angle))
    _, across = limb.coordinates(y, x)
    grey = image.draw(0.02, 0.12) + image.draw(0.15, 0.3) * _below(np.abs(across), thick, 4 * soft + 0.03)
    grey = grey * (1 + 0.35 * clouds[0])

    # bones beside each other, at a small angle; the first one has the break
    aside = image.draw(0.12, 0.18) * image.sign() * two
    bright, cortex = image.draw(0.22, 0.4), image.draw(0.3, 0.7)
    bones = np.zeros_like(grey)
    inside = np.zeros_like(grey)
    for number in range(2):
        tilt = angle + image.draw(-5, 5) * two
        shift = aside * (1 - 2 * number)
        along_y, along_x = _direction(tilt)
        bone = _Line(limb.y - shift * limb.along_x, limb.x + shift * limb.along_y, along_y, along_x)
        upper, lower = image.draw(0.35, 0.6), image.draw(0.35, 0.6)
        along, away = bone.coordinates(y, x)
        beyond = np.maximum(np.maximum(along - lower, -along - upper), 0)
        radius = np.sqrt(away * away + beyond * beyond) / width
        body = _below(radius, 1, 1.2 * soft / width)
        profile = body * (1 - cortex + cortex * np.minimum(radius, 1) * np.minimum(radius, 1))
        # lines in the bone: what is taken away of it
        loss = np.zeros_like(grey)
        plate = _Line(*_on(bone, image.sign() * image.draw(0.22, 0.32)), *_direction(tilt + 90 + image.draw(-8, 8)))
        loss = np.maximum(loss, image.chance(0.4) * image.draw(0.4, 0.7) * _thin(plate, y, x, image, soft, LINE))
        canal = _Line(*_on(bone, image.draw(-0.25, 0.25)), *_direction(tilt + image.draw(-8, 8)))
        short = _below(np.abs(canal.coordinates(y, x)[0]), 0.08, 0.03)
        loss = np.maximum(
            loss, image.chance(0.4) * image.draw(0.4, 0.7) * short * _thin(canal, y, x, image, soft, LINE)
        )
        place, lean = image.draw(-0.25, 0.25), image.sign() * image.draw(35, 55)
        if number == 0:
            line = _Line(*_on(bone, place), *_direction(tilt + lean))
            gap = image.draw(0.8, 1.0) * _thin(line, y, x, image, soft, BREAK)
            loss = np.where(broken[:, None, None], np.maximum(loss, gap), loss)
            roi = _box((gap * body > 0) & broken[:, None, None], steps)
        there = two if number else 1
        bones = bones + there * profile * (1 - loss)
        inside = np.maximum(inside, there * body)
    grey = grey + bright * bones * (1 + 0.25 * clouds[1])

    # folds of skin cross the whole limb
    fold = _Line(*_on(limb, image.draw(-0.3, 0.3)), *_direction(angle + image.sign() * image.draw(35, 55)))
    across_limb = _below(np.abs(fold.coordinates(y, x)[0]), image.draw(0.2, 0.35), 0.05)
    grey = grey * (1 - image.chance(0.4) * image.draw(0.15, 0.35) * across_limb * _thin(fold, y, x, image, soft, LINE))

    # the beam and the detector
    beam = _Line(np.zeros_like(angle), np.zeros_like(angle), *_direction(image.draw(-180, 180)))
    grey = grey * (1 + image.draw(0, 0.5) * beam.coordinates(y, x)[0])
    grey = image.draw(0.0, 0.12) + image.draw(0.75, 1.35) * grey
    noise = uniform(numbers, size * size, _NOISE).numpy().astype(np.float32).reshape(-1, size, size)
    grey = grey + image.draw(0.02, 0.05) * (2 * noise - 1)
    return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8), roi


def _direction(degrees: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(y, x) of length 1, so many degrees from the vertical."""
    angle = np.deg2rad(degrees.astype(np.float64))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _on(line: _Line, along: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The point so far along a line from its middle."""
    return line.y + along * line.along_y, line.x + along * line.along_x


def _below(values: FloatArray, edge: FloatArray | float, soft: FloatArray | float) -> FloatArray:
    """1 where values lie below the edge, 0 above, a ramp of width `soft` about it."""
    ramp: FloatArray = np.clip((edge - values) / np.float32(soft) + np.float32(0.5), 0, 1)
    return ramp


def _thin(
    line: _Line, y: FloatArray, x: FloatArray, image: _Lanes, soft: float, half: tuple[float, float]
) -> FloatArray:
    """1 on a thin, bent line, 0 away from it."""
    along, away = line.coordinates(y, x)
    bent = away + image.draw(-0.7, 0.7) * along * along
    return _below(np.abs(bent), image.draw(*half), 1.2 * soft)


def _box(lost: npt.NDArray[np.bool_], steps: FloatArray) -> npt.NDArray[np.bool_]:
    """The pixels at most `MARGIN` away, along each side, from the box around those that are lost, [N, size, size]."""
    found = []
    for axis in (2, 1):
        there = lost.any(axis=axis)  # [N, size]
        low = np.where(there, steps, np.float32(1)).min(axis=1, keepdims=True)
        high = np.where(there, steps, np.float32(-1)).max(axis=1, keepdims=True)
        found.append((steps >= low - np.float32(MARGIN)) & (steps <= high + np.float32(MARGIN)))
    inside: npt.NDArray[np.bool_] = found[0][:, :, None] & found[1][:, None]
    return inside


def _clouds(numbers: Tensor, size: int) -> tuple[FloatArray, FloatArray]:
    """Two smooth random patterns [N, size, size] in [-1, 1], a coarse and a fine one."""
    first = uniform(numbers, 6 * 6 + 14 * 14, _CLOUDS).numpy().astype(np.float32) * 2 - 1
    return _smooth(first[:, :36].reshape(-1, 6, 6), size), _smooth(first[:, 36:].reshape(-1, 14, 14), size)


def _smooth(grid: FloatArray, size: int) -> FloatArray:
    """A grid [N, m, m], interpolated to [N, size, size] without kinks."""
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size * (grid.shape[1] - 1)
    low = np.minimum(at.astype(np.int64), grid.shape[1] - 2)
    weight = at - low
    weight = (weight * weight * (3 - 2 * weight)).astype(np.float32)
    rows = grid[:, low] * (1 - weight)[:, None] + grid[:, low + 1] * weight[:, None]
    smooth: FloatArray = rows[:, :, low] * (1 - weight) + rows[:, :, low + 1] * weight
    return smooth

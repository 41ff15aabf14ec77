"""Procedural echocardiograms of two scanners: no files, the same image from the same number
(docs/rl4seg.md, Method 10).

The heart is a set of shapes in mm; a scanner looks at it along beams (depth r, angle theta) and its picture is then
brought to pixels. Plane coordinates are mm: y from the probe downwards, x to the right of the picture. Heart
coordinates are mm too: u from the apex of the cavity to its base, v across, both turned and bent with the heart.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
Range = tuple[float, float]
View = Literal["2CH", "4CH"]
Instant = Literal["ED", "ES"]
VIEWS: tuple[View, ...] = ("2CH", "4CH")
INSTANTS: tuple[Instant, ...] = ("ED", "ES")
BEAM_GRID = (160, 96)
"""Samples along a beam, and beams, of every picture, whatever its size in pixels."""
NEAREST_MM = 3.0
"""Depth of the first sample: the face of the probe."""


class Vendor(NamedTuple):
    """Image properties of one maker's scanners; a range is drawn from uniformly, once per recording."""

    gain_db: Range
    dynamic_range_db: Range
    """From black to white: the log compression. Less of it is more contrast."""
    gamma: float
    """Exponent of the grey curve after the log compression."""
    axial_mm: float
    """Standard deviation of the point spread along the beam: the length of the speckle."""
    lateral_deg: float
    """The same across the beams: the width of the speckle, which grows with depth."""
    attenuation_db: Range
    """Loss of the deepest echo against the nearest, after the scanner's own compensation."""
    clutter_db: Range
    """Level of the reverberations before the probe."""
    haze_db: Range
    """Level of the clouds of haze over walls and cavity."""
    wedges: tuple[int, int]
    """Number of dropout wedges: beams that lie behind a rib or lung."""
    wedge_db: Range
    """Loss in the middle of a wedge."""
    gaps: tuple[int, int]
    """Number of places where a wall gives no echo."""


VENDORS = {
    "a": Vendor(
        gain_db=(-3, 5),
        dynamic_range_db=(52, 60),
        gamma=1.0,
        axial_mm=0.7,
        lateral_deg=0.9,
        attenuation_db=(0, 6),
        clutter_db=(-20, -10),
        haze_db=(-50, -40),
        wedges=(0, 1),
        wedge_db=(3, 9),
        gaps=(0, 1),
    ),
    "b": Vendor(
        gain_db=(0, 8),
        dynamic_range_db=(46, 54),
        gamma=0.85,
        axial_mm=1.0,
        lateral_deg=1.4,
        attenuation_db=(0, 8),
        clutter_db=(-12, -4),
        haze_db=(-40, -28),
        wedges=(1, 3),
        wedge_db=(8, 20),
        gaps=(0, 2),
    ),
}


@dataclass(frozen=True)
class EchoPhantom:
    """One image with its truth."""

    image: FloatArray
    """[size, size] in [0, 1]."""
    label: npt.NDArray[np.uint8]
    """[size, size]: 0 background, 1 left ventricle's cavity, 2 myocardium."""
    spacing_mm: tuple[float, float]
    """(y, x) of a pixel; the two differ, as the sector is wider than it is deep, and the image square."""


def echo_phantom(vendor: str, patient: int, view: str, instant: str, size: int = 64) -> EchoPhantom:
    """The picture of one phantom patient.

    The four pictures of a patient (views 2CH and 4CH at ED and ES) show one heart, of a size, position, wall and tilt
    of its own; at ES the cavity is smaller and the wall thicker. Patients of different vendors are different people.
    The label is exact and, from 64 pixels on, anatomically valid (at 32, about 1 % break a rule that counts pixels).
    What makes the ventricle hard to find, as in the clinic:

    - left atrium, right ventricle (4CH) and lung are as dark as the cavity; only the mitral valve parts the atrium;
    - papillary muscle and trabeculae in the cavity are as bright as the wall, but belong to the cavity;
    - walls along the beam answer weakly, the pericardium beside them brightly, and some pieces not at all (gaps);
    - reverberations before the probe hide the apex; haze fills part of the cavity;
    - ribs and lung shadow whole beams (wedges); deep echoes are weak; gain differs from recording to recording;
    - speckle: the grey of one pixel says little.

    Vendor b is the target of an adaptation: harder contrast, coarser speckle, more attenuation, more and deeper wedges,
    haze and gaps than a. The shape of the heart still tells where a hidden wall must be.

    Args:
        vendor: a or b.
        patient: number, 0 or more.
        view: 2CH or 4CH.
        instant: ED or ES.
        size: pixels along each side; it changes neither the heart nor the speckle.

    Raises:
        ValueError: an unknown vendor, view or instant, a negative patient, or a size below 16.
    """
    for name, value, known in (("vendor", vendor, VENDORS), ("view", view, VIEWS), ("instant", instant, INSTANTS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r} but must be one of {', '.join(known)}")
    if patient < 0 or size < 16:
        raise ValueError(f"patient {patient} must not be negative, and size {size} must be at least 16 pixels")
    heart = _heart(_rng(vendor, patient), view, instant)
    scanner = VENDORS[vendor]
    recording = _rng(vendor, patient, view)  # ED and ES are two frames of one recording

    y, x = heart.pixels(size)
    inside = heart.at(y, x)
    label = (inside.cavity + 2 * inside.wall).astype(np.uint8)

    beams = _echoes(heart, scanner, recording, _rng(vendor, patient, view, instant))
    y, x = heart.pixels(2 * size)  # each pixel is the mean of four points: less of its grey is chance
    rows = (np.hypot(y, x) - NEAREST_MM) / (heart.depth_mm - NEAREST_MM) * (BEAM_GRID[0] - 1)
    columns = (np.arctan2(x, y) / heart.half_angle + 1) / 2 * (BEAM_GRID[1] - 1)
    points = ndimage.map_coordinates(beams, np.stack((rows, columns)), order=1, cval=0.0)
    image: FloatArray = points.reshape(size, 2, size, 2).mean((1, 3))
    return EchoPhantom(image, label, (heart.depth_mm / size, heart.width_mm / size))


def _rng(*key: str | int) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(repr(key).encode(), "big"))


# -- the heart -----------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where points lie in the heart, arrays of one shape."""

    u: FloatArray
    v: FloatArray
    inner: FloatArray
    """Distance from the middle of the cavity in units of its size: below 1 inside."""
    outer: FloatArray
    """The same for cavity and wall together."""
    cavity: npt.NDArray[np.bool_]
    wall: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Heart:
    """One patient's heart in one view at one instant, in mm and radians."""

    view: str
    depth_mm: float
    half_angle: float
    """Half the opening angle of the sector."""
    apex: tuple[float, float]
    """(y, x) of the tip of the cavity."""
    tilt: float
    bend_mm: float
    length: float
    """Length of the cavity from its apex to the mitral valve."""
    long: float
    """Semi-axis of the cavity's ellipse along u; the ellipse is cut off at u = length, beyond its middle."""
    short: float
    """Semi-axis of the ellipse along v."""
    wall_mm: float
    wall_at_apex: float
    """Thickness of the wall at the apex, as a share of wall_mm."""
    lopsided: float
    """Share by which the wall on one side is thicker, and on the other thinner."""

    @property
    def width_mm(self) -> float:
        """Width of the sector at its widest, and so of the picture."""
        return 2 * self.depth_mm * math.sin(self.half_angle)

    def pixels(self, size: int) -> tuple[FloatArray, FloatArray]:
        """Middles of size x size pixels that cover the sector: y [size, 1] and x [1, size]."""
        steps = (np.arange(size, dtype=np.float32) + 0.5) / size
        y, x = steps[:, None] * self.depth_mm, (steps[None] - 0.5) * self.width_mm
        return y.astype(np.float32), x.astype(np.float32)

    def at(self, y: FloatArray, x: FloatArray) -> _Place:
        """Where the points (y, x) lie in this heart."""
        dy, dx = y - self.apex[0], x - self.apex[1]
        u = math.cos(self.tilt) * dy + math.sin(self.tilt) * dx
        v = math.cos(self.tilt) * dx - math.sin(self.tilt) * dy
        along = np.clip(u / self.length, -0.2, 1.4)
        v = v - self.bend_mm * 4 * along * (1 - along)
        wall = self.wall_mm * (1 + self.lopsided * np.tanh(v / self.short))
        middle = u - self.long
        inner = np.sqrt((middle / self.long) ** 2 + (v / self.short) ** 2)
        outer = np.sqrt((middle / (self.long + wall * self.wall_at_apex)) ** 2 + (v / (self.short + wall)) ** 2)
        above = u <= self.length
        return _Place(u, v, inner, outer, above & (inner < 1), above & (inner >= 1) & (outer < 1))


def _heart(rng: np.random.Generator, view: str, instant: str) -> _Heart:
    """The heart of the patient whose generator this is; every view and instant makes the same draws."""
    length = rng.uniform(74, 98)
    depth = length * rng.uniform(1.7, 2.05)
    half_angle = math.radians(rng.uniform(36, 42))
    apex = (depth * rng.uniform(0.16, 0.23), rng.uniform(-7, 7))
    short = length * rng.uniform(0.235, 0.31)
    cut = rng.uniform(0.45, 0.75)
    wall = max(rng.uniform(9.5, 13), 0.4 * short)  # a thinner one breaks the rule on the ratio of their widths
    tilt, bend = math.radians(rng.uniform(-17, 17)), rng.uniform(-4, 4)
    at_apex, lopsided = rng.uniform(0.65, 0.95), rng.uniform(-0.15, 0.15)
    other_view = rng.uniform((0.92, 0.86, -9, -4, -6), (1.0, 1.0, 9, 4, 6)).tolist()
    squeeze = rng.uniform((0.82, 0.64, 1.2), (0.92, 0.82, 1.45)).tolist()
    if view == "2CH":
        length, short = length * other_view[0], short * other_view[1]
        tilt, bend = tilt + math.radians(other_view[2]), bend + other_view[3]
        apex = (apex[0], apex[1] + other_view[4])
    if instant == "ES":  # the apex stays, the base comes towards it
        length, short, wall = length * squeeze[0], short * squeeze[1], wall * squeeze[2]
    return _Heart(view, depth, half_angle, apex, tilt, bend, length, length / (1 + cut), short, wall, at_apex, lopsided)


# -- the scanner ---------------------------------------------------------------------------------------------------


def _echoes(heart: _Heart, scanner: Vendor, recording: np.random.Generator, frame: np.random.Generator) -> FloatArray:
    """Grey values along the beams, [depth, angle] in [0, 1]; settings and shadows from `recording`, noise from both."""
    depths, angles = BEAM_GRID
    r = np.linspace(NEAREST_MM, heart.depth_mm, depths, dtype=np.float32)[:, None]
    theta = np.linspace(-heart.half_angle, heart.half_angle, angles, dtype=np.float32)[None]
    gain, dynamic_range, attenuation, clutter, haze = (
        recording.uniform(*limits)
        for limits in (
            scanner.gain_db,
            scanner.dynamic_range_db,
            scanner.attenuation_db,
            scanner.clutter_db,
            scanner.haze_db,
        )
    )
    blur = (
        scanner.axial_mm / (heart.depth_mm - NEAREST_MM) * (depths - 1),
        math.radians(scanner.lateral_deg) / (2 * heart.half_angle) * (angles - 1),
    )
    place = heart.at(r * np.cos(theta), r * np.sin(theta))
    level_db = _reflectivity(heart, place, scanner, recording)
    amplitude = ndimage.gaussian_filter(_amplitude(level_db), blur)

    fog = np.exp(1.2 * _clouds(recording, 5))
    false = _amplitude(clutter - 8.7 * (r - NEAREST_MM) / 14) * (1 + 0.3 * np.cos(r / 1.3)) + _amplitude(haze) * fog
    echo = amplitude * _speckle(frame, blur) + false * _speckle(frame, (2 * blur[0], 2 * blur[1]))
    db = 20 * np.log10(echo + 1e-4) + gain - attenuation * r / heart.depth_mm
    db -= _wedges(heart, scanner, recording, r, theta)
    grey: FloatArray = np.clip(1 + db / dynamic_range, 0, 1) ** scanner.gamma
    return grey


def _reflectivity(heart: _Heart, place: _Place, scanner: Vendor, rng: np.random.Generator) -> FloatArray:
    """Echo level of the tissues, dB [depth, angle]: bright tissue near -15, blood near -45."""
    u, v, inner, outer, cavity, wall = place
    texture = _clouds(rng, 6)
    blood = rng.uniform(-50, -42)
    base = heart.short * math.sqrt(max(1 - (heart.length / heart.long - 1) ** 2, 0.05))  # half width of the valve
    db = -33 + 5 * texture

    # right ventricle (left of the picture, only in 4CH) and left atrium: blood with a thin wall
    if heart.view == "4CH":
        middle = (0.62 * heart.length, -(heart.short + heart.wall_mm) - rng.uniform(12, 17))
        db = _chamber(db, u - middle[0], v - middle[1], (0.5 * heart.length, rng.uniform(11, 16)), blood)
    atrium = (rng.uniform(20, 30), rng.uniform(1.0, 1.35) * base)
    db = _chamber(db, u - heart.length - atrium[0], v - rng.uniform(-4, 4), atrium, blood)

    # pericardium: on the free side in 4CH, on both in 2CH
    free = (v > 0) | (heart.view == "2CH")
    rim = (outer >= 1) & (outer < 1 + 3.0 / (heart.short + heart.wall_mm)) & free & (u < heart.length)
    db[rim] = rng.uniform(-12, -5)

    # a wall along the beam answers weaker than one across it, which lies at the apex
    side = np.abs(v) / (heart.short + heart.wall_mm)
    db[wall] = (rng.uniform(-15, -11) - 3 * side + 2 * texture)[wall]
    db[cavity] = blood
    edge = cavity & (inner > 0.8) & (u < 0.7 * heart.length)
    db[edge] += (np.clip(texture, 0, 1.2) * 18)[edge]  # trabeculae
    place_of_muscle = rng.uniform(0.42, 0.6) * heart.length, rng.choice((-1, 1)) * rng.uniform(0.6, 0.75) * heart.short
    muscle = ((u - place_of_muscle[0]) / 9) ** 2 + ((v - place_of_muscle[1]) / 4.5) ** 2 < 1
    db[muscle & cavity] = rng.uniform(-26, -19)

    # closed mitral valve: two leaflets from the ends of the base, meeting a little inside the cavity
    tent = heart.length - rng.uniform(1, 5) * np.clip(1 - np.abs(v) / base, 0, 1)
    db[(np.abs(u - tent) < 1.3) & (np.abs(v) < base)] = rng.uniform(-26, -16)

    for _ in range(rng.integers(*scanner.gaps, endpoint=True)):  # along the heart's outline, from base to base
        at, width = rng.uniform(-1, 1) * 2.2, rng.uniform(0.15, 0.4)
        round_angle = np.arctan2(v / heart.short, -(u - heart.long) / heart.long)
        db -= np.where(wall | rim, rng.uniform(10, 18) * np.exp(-(((round_angle - at) / width) ** 2)), 0)
    return db.astype(np.float32)


def _chamber(db: FloatArray, u: FloatArray, v: FloatArray, radii: Range, blood: float) -> FloatArray:
    """`db` with an ellipse of blood in a thin wall."""
    radius = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2)
    chamber: FloatArray = np.where(radius < 1, blood, np.where(radius < 1 + 2.5 / min(radii), -18, db))
    return chamber


def _wedges(heart: _Heart, scanner: Vendor, rng: np.random.Generator, r: FloatArray, theta: FloatArray) -> FloatArray:
    """Loss behind ribs and lung, dB >= 0, [depth, angle]."""
    lost = np.zeros(np.broadcast_shapes(r.shape, theta.shape), np.float32)
    for _ in range(rng.integers(*scanner.wedges, endpoint=True)):
        middle, width = rng.uniform(-0.95, 0.95) * heart.half_angle, math.radians(rng.uniform(2.5, 8))
        start = rng.uniform(0, 0.45) * heart.depth_mm
        beam = np.exp(-(((theta - middle) / width) ** 4))
        lost += rng.uniform(*scanner.wedge_db) * beam / (1 + np.exp((start - r) / 4))
    return lost


def _speckle(rng: np.random.Generator, blur: Range) -> FloatArray:
    """Rayleigh noise with mean square 1, [depth, angle]: the modulus of blurred complex noise."""
    parts = rng.standard_normal((2, *BEAM_GRID), dtype=np.float32)
    parts = ndimage.gaussian_filter(parts, (0, *blur))
    noise: FloatArray = np.hypot(*(parts / (math.sqrt(2) * float(parts.std()))))
    return noise


def _clouds(rng: np.random.Generator, knots: int) -> FloatArray:
    """Smooth noise with standard deviation of about 1, [depth, angle]."""
    coarse = rng.standard_normal((knots + 3, knots + 3), dtype=np.float32)
    steps = [np.linspace(1, knots + 1, n, dtype=np.float32) for n in BEAM_GRID]
    field: FloatArray = ndimage.map_coordinates(coarse, np.meshgrid(*steps, indexing="ij"), order=3)
    return (1.4 * field).astype(np.float32, copy=False)


def _amplitude(db: npt.ArrayLike) -> FloatArray:
    return np.power(10, np.asarray(db, np.float32) / 20, dtype=np.float32)

"""Films of episodes: pictures with a caption and a legend below, as GIF or MP4."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw

from ..common.files import replacing
from .drawing import Bytes, Colour, Legend, font

TEXT_PX, MARGIN_PX = 13, 8
LEAST_WIDTH_PX = 480
"""A narrower picture gets bars at its sides, so that the text below has room."""
PAPER: Colour = (24, 24, 24)
INK: Colour = (235, 235, 235)


class Shot(NamedTuple):
    """One picture of a film."""

    picture: Bytes
    """uint8 [H, W, 3], of one shape in the whole film."""
    lines: Sequence[str]
    """The caption: what is known at this moment."""


def check_film(path: str | Path, option: str = "out") -> None:
    """Say before the work whether a film can be written there.

    Raises:
        ValueError: the name does not end in .gif or .mp4, or there is no encoder for MP4. option: named in the message.
    """
    ending = Path(path).suffix
    if ending not in (".gif", ".mp4"):
        raise ValueError(f"{option} is {str(path)!r} but must end in .gif or .mp4")
    if ending == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ValueError(
            f"{option} is {str(path)!r} but an MP4 needs imageio-ffmpeg: pip install 'segarena[video]', or write a .gif"
        )


def write_film(path: str | Path, shots: Sequence[Shot], *, legend: Legend = (), frame_ms: int) -> None:
    """Writes the film to `path`, as its ending says (.gif, .mp4), whole or not at all. A GIF is repeated for ever.

    Raises:
        ValueError: as `check_film`; or no shots.
    """
    check_film(path)
    frames = np.stack(compose(shots, legend))
    with replacing(Path(path)) as unfinished:
        if Path(path).suffix == ".gif":
            imageio.imwrite(unfinished, frames, duration=frame_ms, loop=0)
        else:
            imageio.imwrite(unfinished, frames, plugin="FFMPEG", fps=1000 / frame_ms, macro_block_size=2)


def compose(shots: Sequence[Shot], legend: Legend = ()) -> list[Bytes]:
    """Each picture with its caption and the legend below it: uint8 [H, W, 3], all of one shape, H and W even.

    Raises:
        ValueError: no shots, or pictures of different shapes.
    """
    if not shots:
        raise ValueError("a film needs at least one picture")
    if len(shapes := {shot.picture.shape for shot in shots}) > 1:
        raise ValueError(f"the pictures of a film have different shapes: {sorted(shapes)}")
    height, width, _ = shots[0].picture.shape
    wide = max(width + width % 2, LEAST_WIDTH_PX)
    captions = [[part for line in shot.lines for part in _wrapped(line, wide - 2 * MARGIN_PX)] for shot in shots]
    below = _legend(legend, wide)
    captions_px = MARGIN_PX + max(map(len, captions)) * _line_px()
    tall = height + captions_px + len(below) + MARGIN_PX
    left = (wide - width) // 2
    frames = []
    for shot, lines in zip(shots, captions, strict=True):
        frame = np.full((tall + tall % 2, wide, 3), PAPER, np.uint8)
        frame[:height, left : left + width] = shot.picture
        frame[height : height + captions_px] = _written(lines, (captions_px, wide))
        frame[height + captions_px : height + captions_px + len(below)] = below
        frames.append(frame)
    return frames


def _line_px() -> int:
    return TEXT_PX + 5


def _wrapped(line: str, width: int) -> list[str]:
    """The line, broken between words where it is too wide."""
    parts: list[str] = []
    for word in line.split(" "):
        longer = f"{parts[-1]} {word}" if parts else word
        if parts and font(TEXT_PX).getlength(longer) <= width:
            parts[-1] = longer
        else:
            parts.append(word)
    return parts


def _written(lines: Sequence[str], shape: tuple[int, int]) -> Bytes:
    strip = Image.new("RGB", shape[::-1], PAPER)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((MARGIN_PX, MARGIN_PX + number * _line_px()), line, INK, font(TEXT_PX))
    return np.asarray(strip)


def _legend(legend: Legend, width: int) -> Bytes:
    """A square of each colour with its meaning beside it, in as many lines as it takes: uint8 [H, width, 3]."""
    box, gap = TEXT_PX - 2, 16
    x, y, places = MARGIN_PX, MARGIN_PX, []
    for colour, text in legend:
        needed = box + 6 + int(font(TEXT_PX).getlength(text))
        if x > MARGIN_PX and x + needed > width - MARGIN_PX:
            x, y = MARGIN_PX, y + _line_px()
        places.append((x, y, colour, text))
        x += needed + gap
    strip = Image.new("RGB", (width, y + _line_px() if legend else 0), PAPER)
    draw = ImageDraw.Draw(strip)
    for x, y, colour, text in places:
        draw.rectangle((x, y + 2, x + box, y + 2 + box), fill=colour, outline=(120, 120, 120))
        draw.text((x + box + 6, y), text, INK, font(TEXT_PX))
    return np.asarray(strip)

"""Pictures of attacks: images, what was added to them, labels and predictions side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.files import replacing
from ..datasets.images import IGNORED
from .drawing import GAP_GREY, GAP_PX, Bytes, Colour

IGNORED_GREY = 128


def class_colours(classes: int) -> Bytes:
    """A colour for each class, uint8 [K, 3], by VOC's rule: the bits of the class spread over three channels."""
    values = np.arange(classes, dtype=np.int64)
    colours = np.zeros((classes, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((values >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def class_picture(classes: Tensor, number: int) -> Bytes:
    """Class numbers [H, W] as colours, uint8 [H, W, 3]; what is ignored is grey."""
    table = np.full((256, 3), IGNORED_GREY, dtype=np.uint8)
    table[:number] = class_colours(number)
    return np.asarray(table[classes.cpu().numpy()], dtype=np.uint8)


def image_picture(image: Tensor) -> Bytes:
    """An image [C, H, W] in [0, 1] as uint8 [H, W, 3]; but for three channels the first one, in grey."""
    shown = (255 * image.clamp(0, 1)).round().to(torch.uint8)
    return (shown if len(shown) == 3 else shown[:1].expand(3, -1, -1)).permute(1, 2, 0).cpu().numpy()


def change_picture(image: Tensor, adversarial: Tensor) -> Bytes:
    """What was added to an image, stretched so that its largest value is white and 0 is grey."""
    change = adversarial - image
    most = change.abs().max().clamp(min=1e-6)
    return image_picture(0.5 + 0.5 * change / most)


def attack_panel(images: Tensor, adversarial: Tensor, maps: Sequence[Tensor], classes: int) -> Bytes:
    """A row for each image: it, the change, it attacked, and each of its maps.

    Args:
        images: float32 [N, C, H, W] in [0, 1].
        adversarial: the same, attacked.
        maps: class numbers [N, H, W] each: its labels, and what is predicted of it.
        classes: K.
    """
    rows = []
    for n, image in enumerate(images):
        tiles = [image_picture(image), change_picture(image, adversarial[n]), image_picture(adversarial[n])]
        tiles += [class_picture(one[n], classes) for one in maps]
        rows.append(_joined(tiles, axis=1))
    return _joined(rows, axis=0)


def class_legend(names: Sequence[str]) -> list[tuple[Colour, str]]:
    """Colours and names of the classes, and of what is ignored."""
    colours = [(int(red), int(green), int(blue)) for red, green, blue in class_colours(len(names))]
    grey = (IGNORED_GREY, IGNORED_GREY, IGNORED_GREY)
    return [*zip(colours, names, strict=True), (grey, f"ignored ({IGNORED})")]


def image_bytes(pixels: Tensor) -> Bytes:
    """Pixels uint8 [C, H, W] of one channel or three as [H, W] or [H, W, 3]."""
    return (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).cpu().numpy()


def save_classes(path: Path, classes: Tensor, number: int) -> None:
    """Write class numbers uint8 [H, W] as a PNG that holds these numbers, and shows them in their colours."""
    from PIL import Image

    picture = Image.fromarray(classes.cpu().numpy())
    picture.putpalette(class_colours(number).tobytes())
    with replacing(path) as unfinished:
        picture.save(unfinished, format="PNG")


def save_picture(path: Path, pixels: Bytes) -> None:
    """Write colours uint8 [H, W, 3], or grey values uint8 [H, W], as a PNG."""
    from PIL import Image

    with replacing(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, format="PNG")


def _joined(tiles: Sequence[Bytes], axis: int) -> Bytes:
    shape = list(tiles[0].shape)
    shape[axis] = GAP_PX
    gap = np.full(shape, GAP_GREY, dtype=np.uint8)
    parts = [part for tile in tiles for part in (gap, tile)][1:]
    return np.concatenate(parts, axis=axis)

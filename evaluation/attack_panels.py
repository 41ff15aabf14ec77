"""Pictures of attacks: images, what was added to them, labels and predictions side by side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.files import replacing
from ..datasets.images import IGNORED
from .drawing import Bytes, Colour, beside, enlarged

IGNORED_GREY = 128
TILE_PX = 128
"""Side that small images are enlarged to in a panel, about."""


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
    """A row for each image: it, the change, it attacked, and each of its maps; small images are enlarged.

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
        rows.append(beside([enlarged(tile, TILE_PX) for tile in tiles]))
    return beside(rows, axis=0)


def volume_panel(images: Tensor, adversarial: Tensor, maps: Sequence[Tensor], classes: int) -> Bytes:
    """As `attack_panel`, of the middle slices and the first channel of patches, in shares of the clean ones' range.

    Args:
        images: float32 [N, C, X, Y, Z], in any unit.
        adversarial: the same, attacked.
        maps: class numbers [N, X, Y, Z] each.
        classes: K.
    """
    clean = images[:, :1]
    slices = [middle_slice(range_shares(x[:, :1], clean)) for x in (images, adversarial)]
    return attack_panel(slices[0], slices[1], [middle_slice(one) for one in maps], classes)


def slice_panel(image: Tensor, classes: Tensor, number: int) -> Bytes:
    """The axial slice with most of the foreground, the middle one where there is none: image, and classes in colours.

    Args:
        image: float32 [1, C, X, Y, Z], in any unit, of which the first channel is shown.
        classes: class numbers [1, X, Y, Z].
        number: K.
    """
    area = (classes > 0).sum(dim=(0, 1, 2))
    k = int(area.argmax()) if bool(area.any()) else classes.shape[-1] // 2
    shown, found = (one[..., k : k + 1] for one in (range_shares(image[:, :1], image[:, :1]), classes))
    tiles = image_picture(middle_slice(shown)[0]), class_picture(middle_slice(found)[0], number)
    return beside([enlarged(tile, TILE_PX) for tile in tiles])


def range_shares(x: Tensor, of: Tensor) -> Tensor:
    """Intensities [N, C, *spatial] as shares of the range of each channel of `of`, which are in [0, 1] where x = of."""
    axes = tuple(range(2, of.dim()))
    low, high = of.amin(axes, keepdim=True), of.amax(axes, keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-6)


def middle_slice(volumes: Tensor) -> Tensor:
    """The middle axial slice [..., Y, X] of volumes [..., X, Y, Z]: front up, the patient's right on the left."""
    return volumes[..., volumes.shape[-1] // 2].transpose(-1, -2).flip(-1, -2)


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

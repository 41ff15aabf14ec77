"""Class probabilities of whole photographs by two protocols (docs/rp-pgd.md, Method 16): overlapping windows, as the
released program, or one pass over all of it. For any network that gives logits; gradients flow where they are on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.checks import AT_LEAST_1, POSITIVE, check
from ..datasets.images import IMAGENET_MEAN
from ..datasets.scenes.augmentation import padded, padding, resized, sides
from .inference import probabilities_of
from .norms import modes_kept

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Protocol:
    """How probabilities of a photograph are computed.

    Raises:
        ValueError: a value outside its range, or no scale.
    """

    crop: int | None = 473
    """Height and width of a window in pixels; None: one pass over the whole image, its sides padded to 8 k + 1."""
    base_size: int | None = 512
    """Pixels that the longer side is brought to, times each scale; None: as it is, times each scale."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of `base_size`, over which probabilities are averaged."""
    flip: bool = False
    """Average with the probabilities of the mirrored window."""
    colour: tuple[float, ...] = IMAGENET_MEAN
    """Padding, a number for each channel."""
    batch_size: int = 16
    """Windows in one pass."""

    def __post_init__(self) -> None:
        check(self, "protocol.", crop=AT_LEAST_1, base_size=AT_LEAST_1, scales=POSITIVE, batch_size=AT_LEAST_1)
        if not self.scales:
            raise ValueError("protocol.scales is () but needs a factor; give 1 for one pass")


REFERENCE = {"voc": Protocol(), "cityscapes": Protocol(449, 1024), "ade20k": Protocol(465, 512)}
"""The released program's numbers for each data set; with `flip` it evaluates clean images, without it attacked ones."""


class ProtocolNet(nn.Module):
    """A network behind a protocol: ln of the probabilities [B, K, H, W] of images [B, C, H, W], which are logits, too.

    So whatever takes a network takes a protocol, too: an attack on it changes the whole image, and its gradient is that
    of all windows.

    Args:
        net: gives logits of K classes, at least 2.
        protocol: see there.
    """

    def __init__(self, net: nn.Module, protocol: Protocol) -> None:
        super().__init__()
        self.net, self.protocol = net, protocol

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K, H, W].

        Raises:
            ValueError: as `protocol_probabilities`; or a network of one class.
        """
        found = protocol_probabilities(self.net, images, self.protocol)
        if found.shape[1] == 1:
            raise ValueError("the network gives one class but ProtocolNet needs at least two")
        return found.clamp(min=torch.finfo(found.dtype).tiny).log()


def window_starts(length: int, crop: int) -> list[int]:
    """First pixels of the windows along an axis of at least `crop` pixels.

    They are 2/3 of `crop` apart, rounded up; the last one is flush with the end.

    >>> from segarena.segmenters.sliding import window_starts
    >>> window_starts(512, 473), window_starts(1024, 449)
    ([0, 39], [0, 300, 575])
    """
    stride = -(-2 * crop // 3)
    number = 1 + -(-(length - crop) // stride)
    return [min(n * stride, length - crop) for n in range(number)]


def protocol_probabilities(net: nn.Module, images: Tensor, protocol: Protocol) -> Tensor:
    """Probabilities float32 [B, K, H, W] of images float32 [B, C, H, W] in [0, 1]; K = 1 for a binary network.

    Evaluation mode meanwhile. The longer side is brought to `base_size` times a scale, the image padded to the window
    and cut into windows; the probabilities of windows are averaged where they overlap, cut out, brought to H x W
    (linear) and averaged over scales.

    Raises:
        ValueError: images of another rank, or of another number of channels than `colour` has.

    >>> import torch
    >>> from segarena.segmenters.sliding import Protocol, protocol_probabilities
    >>> net = torch.nn.Conv2d(3, 5, 3, padding=1)
    >>> with torch.no_grad():
    ...     p = protocol_probabilities(net, torch.rand(2, 3, 40, 60), Protocol(crop=33, base_size=50, flip=True))
    >>> p.shape, bool(((p.sum(dim=1) - 1).abs() < 1e-5).all())
    (torch.Size([2, 5, 40, 60]), True)
    """
    if images.ndim != 4 or images.shape[1] != len(protocol.colour):
        raise ValueError(
            f"images are {list(images.shape)} but must be [B, C, H, W] with a number of protocol.colour for each of "
            f"C channels; it has {len(protocol.colour)}"
        )
    height, width = images.shape[2:]
    total = images.new_zeros(())
    with modes_kept(net):
        net.eval()
        for scale in protocol.scales:
            long_side = round(scale * (protocol.base_size or max(height, width)))
            scaled = resized(images, *sides(height, width, long_side))
            total = total + resized(_padded_probabilities(net, scaled, protocol), height, width)
    return total / len(protocol.scales)


def _padded_probabilities(net: Forward, images: Tensor, protocol: Protocol) -> Tensor:
    """Probabilities [B, K, h, w] of images [B, C, h, w] of the size at which the network sees them."""
    height, width = images.shape[2:]
    if protocol.crop is None:
        to_height, to_width = (8 * -(-(n - 1) // 8) + 1 for n in (height, width))
    else:
        to_height = to_width = protocol.crop
    edges = padding(height, width, to_height, to_width)
    images = padded(images, edges, protocol.colour)
    if protocol.crop is None:
        found = _probabilities(net, images, protocol)
    else:
        found = _windowed(net, images, protocol.crop, protocol)
    return found[..., edges.above : edges.above + height, edges.before : edges.before + width]


def _windowed(net: Forward, images: Tensor, crop: int, protocol: Protocol) -> Tensor:
    """Mean probabilities of all windows over each pixel."""
    height, width = images.shape[2:]
    corners = [(y, x) for y in window_starts(height, crop) for x in window_starts(width, crop)]
    windows = torch.cat([images[..., y : y + crop, x : x + crop] for y, x in corners])
    number = -(-len(windows) // protocol.batch_size)
    found = torch.cat([_probabilities(net, part, protocol) for part in windows.tensor_split(number)])
    total = found.new_zeros(len(images), found.shape[1], height, width)
    seen = found.new_zeros(height, width)
    for (y, x), part in zip(corners, found.tensor_split(len(corners)), strict=True):
        total[..., y : y + crop, x : x + crop] += part
        seen[y : y + crop, x : x + crop] += 1
    return total / seen


def _probabilities(net: Forward, images: Tensor, protocol: Protocol) -> Tensor:
    """Probabilities [B, K, h, w] of images [B, C, h, w], with `flip` the mean with those of the mirrored images."""
    found = probabilities_of(_logits(net, images))
    if not protocol.flip:
        return found
    return (found + probabilities_of(_logits(net, images.flip(-1))).flip(-1)) / 2


def _logits(net: Forward, images: Tensor) -> Tensor:
    """Logits float32 at the images' size; coarser ones are resized (linear, aligned corners)."""
    logits = net(images).float()
    if logits.shape[2:] == images.shape[2:]:
        return logits
    return functional.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=True)


def to_classes(probabilities: Tensor) -> Tensor:
    """The most probable classes, uint8 [B, H, W], of probabilities [B, K, H, W]."""
    binary = probabilities.shape[1] == 1
    return (probabilities[:, 0] > 0.5 if binary else probabilities.argmax(dim=1)).to(torch.uint8)

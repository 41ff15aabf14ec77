"""Labels and probabilities of many images, of any segmentation network and on any device.

A network of one channel is a binary one: logit > 0, or p > 0.5, is label 1.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..common.device import bfloat16_on_cuda
from .norms import modes_kept


def segment(net: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """The most probable labels, uint8 [N, H, W] on the device of `images`, of images uint8 [N, C, H, W].

    Eval mode meanwhile, without gradients.

    Raises:
        ValueError: the images are of another type or rank.
    """
    return torch.cat([labels_of(logits).to(images.device) for logits in _logits(net, images, batch_size)])


def probabilities(net: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """Class probabilities float32 [N, K, H, W] of images uint8 [N, C, H, W]; K = 1 for a binary network.

    As `segment`, but 4 K bytes per pixel stay: give large sets in parts.
    """
    return torch.cat([probabilities_of(logits).to(images.device) for logits in _logits(net, images, batch_size)])


def labels_of(logits: Tensor) -> Tensor:
    """The most probable labels uint8 [B, H, W] of logits [B, K, H, W]; 0 where two are equal."""
    return (logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)).to(torch.uint8)


def probabilities_of(logits: Tensor) -> Tensor:
    """softmax, or the logistic function of a single channel; both [B, K, H, W]."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def logits_of(net: nn.Module, x: Tensor) -> Tensor:
    """Logits float32 [B, K, H, W] of x float32 [B, C, H, W] in [0, 1]; the network in the mode in which it is."""
    with bfloat16_on_cuda(x.device):
        logits: Tensor = net(x)
    return logits.float()


def image_batches(images: Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """x float32 [B, C, H, W] in [0, 1] on `device`, in order, of images uint8 [N, C, H, W].

    As few batches as `batch_size` permits, of nearly equal sizes: none is so small that its statistics say nothing.

    Raises:
        ValueError: the images are of another type or rank, or there is none.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"images are {images.dtype} {list(images.shape)} but must be uint8 [N, C, H, W] with N > 0")
    for part in images.tensor_split(math.ceil(len(images) / batch_size)):
        yield part.to(device).float() / 255


def _logits(net: nn.Module, images: Tensor, batch_size: int) -> Iterator[Tensor]:
    with torch.no_grad(), modes_kept(net):
        net.eval()
        for x in image_batches(images, batch_size, device_of(net)):
            yield logits_of(net, x)


def device_of(net: nn.Module) -> torch.device:
    """Device of the network's parameters."""
    return next(net.parameters()).device

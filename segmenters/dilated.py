"""What PSPNet and DeepLabv3 share: a ResNet at output stride 8, a context module, heads (docs/rp-pgd.md, Method 12).

Symbols: x = images [B, in, H, W], K = number of classes; h, w = grid of the features, one position every 8 pixels.
"""

import logging
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.checks import AT_LEAST_1, BELOW_1, check_choice, check_range
from ..common.networks import Network
from ..datasets.folders import log_once
from .norms import batchnorms
from .resnet import OUTPUT_STRIDE, Backbone, resnet_stages, stage_widths

CLEAN, ADVERSARIAL = 0, 1
"""Classes of the mask head of DDC-AT."""


class TrainingOutputs(NamedTuple):
    """What the losses of a training are made of, each at the size of the images."""

    logits: Tensor
    """[B, K, H, W]; with DDC-AT those of either head, pixel by pixel, as the mask says."""
    auxiliary: Tensor
    """[B, K, H, W] of the auxiliary head, on stage 3."""
    mask: Tensor | None
    """[B, 2, H, W] of DDC-AT's mask head: clean, adversarial; None without DDC-AT."""


class DilatedSegmenter(Network):
    """Stages `layer0` to `layer4`, `context`, `head`, `auxiliary_head`, and with DDC-AT two more heads.

    `layer4` is the stage whose output attacks take as features (`feature_layer="layer4"`). A subclass sets `context`
    and calls `_set_heads`.

    Any H, W: sides that are not 8k + 1 are padded with 0, right and below, up to the next one, and the logits cut back.
    """

    context: nn.Module
    head: nn.Module
    auxiliary_head: nn.Module
    adversarial_head: nn.Module | None
    mask_head: nn.Module | None

    def __init__(
        self, in_channels: int, out_channels: int, backbone: Backbone, deep_stem: bool, dropout: float, ddc_at: bool
    ) -> None:
        super().__init__()
        check_range("in_channels", in_channels, AT_LEAST_1)
        check_range("out_channels", out_channels, AT_LEAST_1)
        check_choice("backbone", backbone, get_args(Backbone))
        check_range("dropout", dropout, (0, BELOW_1))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.backbone: Backbone = backbone
        self.deep_stem, self.dropout, self.ddc_at = deep_stem, dropout, ddc_at
        stages = resnet_stages(backbone, in_channels, deep_stem=deep_stem)
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def _set_heads(self, maps: int, hidden: int, kernel: int) -> None:
        """Set all heads; `hidden` maps between their two convolutions, of which the first is kernel x kernel.

        Args:
            maps: that the context module gives.
            hidden: of all heads but the auxiliary one, which has a quarter of the maps of stage 3.
            kernel: 1 or 3.
        """
        shallow = stage_widths(self.backbone)[2]
        self.head = make_head(maps, hidden, self.out_channels, kernel, self.dropout)
        self.auxiliary_head = make_head(shallow, shallow // 4, self.out_channels, kernel, self.dropout)
        self.adversarial_head = self.mask_head = None
        if self.ddc_at:
            self.adversarial_head = make_head(maps, hidden, self.out_channels, kernel, self.dropout)
            self.mask_head = make_head(maps, hidden, 2, kernel, self.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K, H, W] of images [B, in, H, W], of `head` alone: what is used and what is attacked.

        Raises:
            ValueError: images of another shape, or a single one while batch normalisation counts statistics.
        """
        _, context = self._features(images)
        return upsample(self.head(context), images.shape)

    def training_outputs(self, images: Tensor) -> TrainingOutputs:
        """Outputs of all heads for images [B, in, H, W], in train or eval mode.

        Raises:
            ValueError: as `forward`.
        """
        shallow, context = self._features(images)
        logits = upsample(self.head(context), images.shape)
        auxiliary = upsample(self.auxiliary_head(shallow), images.shape)
        if self.adversarial_head is None or self.mask_head is None:
            return TrainingOutputs(logits, auxiliary, None)
        mask = upsample(self.mask_head(context), images.shape)
        attacked = mask.argmax(dim=1, keepdim=True) == ADVERSARIAL  # [B, 1, H, W]
        merged = torch.where(attacked, upsample(self.adversarial_head(context), images.shape), logits)
        return TrainingOutputs(merged, auxiliary, mask)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Output of stage 3 and of the context module, each [B, D, h, w]."""
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images are {list(images.shape)} but {type(self).__name__} needs [B, {self.in_channels}, H, W]; build "
                f"it with in_channels as the images have channels"
            )
        if len(images) == 1 and any(norm.training for norm in batchnorms(self.context)):
            raise ValueError(
                "the batch is of one image, but in train mode batch normalisation of pooled maps needs at least two; "
                "give more images, or call eval()"
            )
        shallow = self.layer3(self.layer2(self.layer1(self.layer0(pad(images)))))
        return shallow, self.context(self.layer4(shallow))


def make_head(maps: int, hidden: int, outputs: int, kernel: int, dropout: float) -> nn.Sequential:
    """Convolution kernel x kernel, normalisation, ReLU, dropout of whole maps, 1x1 convolution with bias."""
    return nn.Sequential(
        *conv_norm_relu(maps, hidden, kernel),
        nn.Dropout2d(dropout),
        nn.Conv2d(hidden, outputs, 1),
    )


def conv_norm_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    """Convolution without bias that keeps the grid, normalisation, ReLU."""
    padding = kernel // 2 * dilation
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def resize(maps: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """Maps [B, D, *size], linear between positions, with aligned corners."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def upsample(logits: Tensor, shape: torch.Size) -> Tensor:
    """Logits [B, K, H, W] of those on the grid [B, K, h, w]; of what was padded only the image is kept."""
    height, width = (OUTPUT_STRIDE * (side - 1) + 1 for side in logits.shape[-2:])
    return resize(logits, (height, width))[..., : shape[-2], : shape[-1]]


def pad(images: Tensor) -> Tensor:
    """Images with sides 8k + 1: 0, the mean where they are normalised, is added right and below; said once a size."""
    below, right = (-(side - 1) % OUTPUT_STRIDE for side in images.shape[-2:])
    if not below and not right:
        return images
    height, width = images.shape[-2:]
    log_once(
        f"images of {height} x {width} are padded to {height + below} x {width + right}, since sides must be 8k + 1",
        logging.WARNING,
    )
    return F.pad(images, (0, right, 0, below))

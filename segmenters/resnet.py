"""ResNets as five stages with output stride 8: the backbone of PSPNet and DeepLabv3 (docs/rp-pgd.md, Method 12).

Stages 3 and 4 keep the grid of stage 2; their 3x3 convolutions are dilated by 2 and 4 instead. Names of weights within
a stage are torchvision's. Symbols: x = maps [B, in, h, w].
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

Backbone = Literal["resnet18", "resnet50", "resnet101", "resnet152"]
OUTPUT_STRIDE = 8
"""Pixels of the image from one position of the last three stages to the next."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with stride, both dilated; the input is added before the last ReLU."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride, dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, 1, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, planes, h / stride, w / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution to 4 planes; stride and dilation are those of the 3x3 one ("v1.5")."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, 4 planes, h / stride, w / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return out


BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""Kind of block and how many of them stages 1 to 4 have."""
PLANES, STRIDES, DILATIONS = (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4)
"""Of stages 1 to 4."""


def stage_widths(backbone: Backbone) -> list[int]:
    """Maps that stages 1 to 4 give."""
    return [planes * BLOCKS[backbone][0].expansion for planes in PLANES]


def resnet_stages(backbone: Backbone, in_channels: int, *, deep_stem: bool) -> list[nn.Sequential]:
    """Stages 0 (the stem) to 4, drawn for training from nothing: He's normal distribution by fan-out.

    Args:
        backbone: which ResNet.
        in_channels: channels of the images.
        deep_stem: three 3x3 convolutions as the stem in place of one of 7x7.
    """
    block, numbers = BLOCKS[backbone]
    stages = [_stem(in_channels, deep_stem)]
    inputs = 128 if deep_stem else 64
    for planes, number, stride, dilation in zip(PLANES, numbers, STRIDES, DILATIONS, strict=True):
        first = block(inputs, planes, stride, dilation)
        inputs = planes * block.expansion
        stages.append(nn.Sequential(first, *(block(inputs, planes, 1, dilation) for _ in range(number - 1))))
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return stages


def _stem(in_channels: int, deep: bool) -> nn.Sequential:
    """Maps at stride 4: 64, or 128 where the stem is deep."""
    convolutions = (
        [conv3x3(in_channels, 64, 2, 1), conv3x3(64, 64, 1, 1), conv3x3(64, 128, 1, 1)]
        if deep
        else [nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)]
    )
    layers: list[nn.Module] = []
    for conv in convolutions:
        layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))


def conv3x3(inputs: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    """3x3 convolution without bias that keeps the grid but for its stride."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """1x1 convolution and normalisation where the input of a block cannot be added as it is; None: it can."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

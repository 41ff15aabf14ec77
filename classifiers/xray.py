"""Classifiers of X-rays (docs/apga.md, Method 7): feature maps, ReLU, their mean, one linear layer.

Symbols: x = images [B, C, H, W] in [0, 1]; A = feature maps before the last ReLU [B, M, h, w]; z = logits [B, K].
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.checks import check_choice, check_range
from ..common.device import bfloat16_on_cuda
from ..common.networks import Network
from ..common.published import put_weights, read_state_dict

Architecture = Literal["densenet169", "small_cnn"]
Normalize = Literal["none", "imagenet"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PACKAGED = Path(__file__).with_name("weights") / "xray_phantom.safetensors"
"""The classifier that comes with the package, trained on phantoms; its card stands beside it."""
LEAST_SIDE = {"densenet169": 32, "small_cnn": 8}
"""Pixels of a side that are needed for one position of the feature maps."""
IMAGENET_CLASSIFIER = "classifier."
"""Beginning of the names of torchvision's last layer, which tells the classes of ImageNet apart."""
MASKED = "masked_"
"""Beginning of the names of the statistics of masked images."""


class XrayClassifier(Network):
    """A classifier of K classes whose class activation maps have a closed form.

    Args:
        network: densenet169, MONAI's, or small_cnn: three convolutions of stride 2 and one of 1.
        in_channels: C: 1, or 3, to which a grey picture is repeated.
        out_channels: K, at least 2.
        normalize: imagenet: takes ImageNet's mean off, and divides by its deviation, inside: after any mask.
        split_bn: masked images have batch statistics of their own.

    Raises:
        ValueError: a value that is not allowed, or values that do not go together.
    """

    def __init__(
        self,
        network: Architecture = "densenet169",
        in_channels: int = 3,
        out_channels: int = 2,
        normalize: Normalize = "none",
        split_bn: bool = False,
    ) -> None:
        super().__init__()
        check_choice("network", network, get_args(Architecture))
        check_choice("in_channels", in_channels, (1, 3))
        check_range("out_channels", out_channels, (2, 1000))
        check_choice("normalize", normalize, get_args(Normalize))
        if normalize == "imagenet" and in_channels != 3:
            raise ValueError("normalize is 'imagenet' but in_channels is 1; use 3, to which a grey picture is repeated")
        self.network, self.in_channels, self.out_channels = network, in_channels, out_channels
        self.normalize, self.split_bn = normalize, False
        if network == "densenet169":
            self.body, self.head = _densenet169(in_channels, out_channels)
        else:
            self.body, self.head = _small_cnn(in_channels, out_channels)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        if split_bn:
            self.split_statistics()

    def forward(self, x: Tensor, *, masked: bool = False) -> Tensor:
        """z [B, K]; see `feature_maps`."""
        logits: Tensor = self.head(F.relu(self.feature_maps(x, masked=masked)).mean(dim=(2, 3)))
        return logits

    def feature_maps(self, x: Tensor, *, masked: bool = False) -> Tensor:
        """A [B, M, h, w].

        Args:
            x: images [B, C, H, W] or, with three channels, grey ones [B, 1, H, W], in [0, 1].
            masked: a mask has been applied to them: with `split_bn` their own statistics are used and learned.

        Raises:
            ValueError: another shape, or sides that are too small.
        """
        least = LEAST_SIDE[self.network]
        if x.ndim != 4 or x.shape[1] not in (1, self.in_channels) or min(x.shape[-2:]) < least:
            raise ValueError(
                f"images have shape {list(x.shape)} but {self.network} needs [B, {self.in_channels}, H, W], or one "
                f"channel for three, of at least {least} x {least} pixels"
            )
        x = x.expand(-1, self.in_channels, -1, -1)
        if self.normalize == "imagenet":
            x = (x - self.get_buffer("mean")) / self.get_buffer("std")
        with self._statistics_of(masked):
            maps: Tensor = self.body(x)
        return maps

    def split_statistics(self) -> None:
        """Give masked images batch statistics of their own, which begin as those of the plain ones."""
        for parent in list(self.body.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.BatchNorm2d:
                    setattr(parent, name, SplitBatchNorm(layer))
        self.split_bn = True

    @contextmanager
    def _statistics_of(self, masked: bool) -> Iterator[None]:
        layers = [one for one in self.body.modules() if isinstance(one, SplitBatchNorm)] if masked else []
        for layer in layers:
            layer.masked = True
        try:
            yield
        finally:
            for layer in layers:
                layer.masked = False


class SplitBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with a second set of running statistics for masked images; gain and offset are shared.

    Args:
        layer: whose parameters it takes over, and whose statistics both sets begin with.
    """

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum)
        self._parameters, self._buffers = layer._parameters, layer._buffers
        self.masked = False
        for name in ("running_mean", "running_var"):
            self.register_buffer(f"{MASKED}{name}", layer.get_buffer(name).clone())
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps [B, C, H, W]: by the statistics of masked images while `masked` is set."""
        if not self.masked:
            return super().forward(x)
        mean, var = (self.get_buffer(f"{MASKED}{name}") for name in ("running_mean", "running_var"))
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum or 0.0, self.eps)

    def begin_as_plain(self) -> None:
        """Make the statistics of masked images those of the plain ones."""
        for name in ("running_mean", "running_var"):
            self.get_buffer(f"{MASKED}{name}").copy_(self.get_buffer(name))


def load_imagenet(net: XrayClassifier, path: str | Path) -> None:
    """Put ImageNet weights of torchvision's DenseNet-169, of any version, into `net`; its last layer stays as it is.

    Args:
        net: a densenet169 of three channels; is changed.
        path: a .safetensors file, or one that `torch.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `net` is another network, or the file is damaged or holds code, weights are missing, unexpected or
            of another shape (each named as the file has it), or not finite.
    """
    if net.network != "densenet169" or net.in_channels != 3:
        raise ValueError(
            f"{str(path)!r} is to be put into a {net.network} of {net.in_channels} channel(s), but ImageNet weights "
            f"are of a densenet169 of 3; use network='densenet169', in_channels=3: a grey picture is repeated"
        )
    weights = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): value  # versions before 0.3 have norm.1
        for name, value in read_state_dict(path).items()
        if not name.startswith(IMAGENET_CLASSIFIER)
    }
    own = [name for name in net.state_dict() if name.startswith("body.") and f".{MASKED}" not in name]
    names = {name: name.replace("body.", "features.", 1).replace(".layers.", ".") for name in own}
    put_weights(net, weights, names, f"checkpoint {str(path)!r}", "DenseNet-169")
    for layer in net.modules():
        if isinstance(layer, SplitBatchNorm):
            layer.begin_as_plain()


@torch.no_grad()
def probabilities(net: XrayClassifier, images: Tensor, *, masked: bool = False, batch_size: int = 256) -> Tensor:
    """Softmax of the logits, float32 [N, K]; the network in eval mode.

    Args:
        net: the classifier.
        images: uint8 [N, 1, H, W], or float in [0, 1]; on its device.
        masked: a mask has been applied to them.
        batch_size: images in one pass.
    """
    found = []
    for batch in torch.split(images, batch_size):
        with bfloat16_on_cuda(images.device):
            logits = net(to_unit(batch), masked=masked)
        found.append(logits.float().softmax(dim=1))
    return torch.cat(found)


def to_unit(images: Tensor) -> Tensor:
    """Images as floating point in [0, 1]: uint8 are divided by 255, others are as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _densenet169(channels: int, classes: int) -> tuple[nn.Module, nn.Linear]:
    from monai.networks.nets.densenet import DenseNet169  # takes two seconds to import

    net = DenseNet169(spatial_dims=2, in_channels=channels, out_channels=classes)
    head = net.class_layers.out
    assert isinstance(head, nn.Linear)
    return net.features, head


def _small_cnn(channels: int, classes: int) -> tuple[nn.Module, nn.Linear]:
    layers: list[nn.Module] = []
    for maps, stride in ((16, 2), (32, 2), (64, 2), (64, 1)):
        layers += [nn.ReLU(inplace=True)] if layers else []
        layers += [nn.Conv2d(channels, maps, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(maps)]
        channels = maps
    return nn.Sequential(*layers), nn.Linear(channels, classes)

"""Weights that others have trained, in their own layouts (docs/rp-pgd.md, Method 13; docs/seat.md, Method 8;
docs/apga.md, Method 10).

A layout says which name a file has for each part of the network.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.published import put_weights, read_state_dict
from .dilated import DilatedSegmenter
from .pspnet import PSPNet
from .rog import ROG
from .unet11 import UNet11

STAGES = {f"layer{number}": f"layer{number}" for number in range(1, 5)}
TORCHVISION = {"layer0.0": "conv1", "layer0.1": "bn1", **STAGES}
"""ImageNet weights of torchvision: a stem of 7x7."""
SEMSEG = {"layer0.3": "conv2", "layer0.4": "bn2", "layer0.6": "conv3", "layer0.7": "bn3", **TORCHVISION}
"""ImageNet weights of semseg (`resnet50_v2`): a stem of three 3x3 convolutions."""
CLASSIFIER = "fc."
"""Beginning of the names of the ImageNet classifier, which no segmenter has."""
ROG_PREFIX = "ROG."
"""Beginning of the names of ROG's published weights, after "module."."""
VGG11 = {"conv1": 0, "conv2": 3, "conv3s": 6, "conv3": 8, "conv4s": 11, "conv4": 13, "conv5s": 16, "conv5": 18}
"""Convolutions of UNet11's encoder, and their places in VGG-11."""
VGG_CLASSIFIER = "classifier."
"""Beginning of the names of VGG-11's classifier, which UNet11 does not have."""


def load_imagenet(net: DilatedSegmenter, path: str | Path) -> None:
    """Put ImageNet weights in torchvision's or semseg's layout into the stages of `net`; its heads stay as they are.

    Args:
        net: is changed.
        path: a .safetensors file, or one that `torch.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds code, its stem is not the network's, weights are missing, unexpected
            or of another shape (each named as the file has it), or not finite.
    """
    weights, source = read_state_dict(path), f"checkpoint {str(path)!r}"
    _check_stem(net, "conv2.weight" in weights, source)
    weights = {name: value for name, value in weights.items() if not name.startswith(CLASSIFIER)}
    _put(net, weights, SEMSEG if net.deep_stem else TORCHVISION, source, _described(net))


def load_released(net: DilatedSegmenter, path: str | Path) -> None:
    """Put a checkpoint of the programs of RP-PGD, SAT or DDC-AT, with all its heads, into `net`.

    Args:
        net: is changed; with `ddc_at` where the file has DDC-AT's heads, with `deep_stem` where it has that stem.
        path: a .safetensors file, or one that `torch.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `load_imagenet`, or the file is of another number of classes or another training.
    """
    weights, source = read_state_dict(path), f"checkpoint {str(path)!r}"
    _check_stem(net, "layer0.3.weight" in weights, source)
    ddc_at = "cls1.0.weight" in weights
    if ddc_at != net.ddc_at:
        has, lacks = ("has", "lacks") if ddc_at else ("lacks", "has")
        raise ValueError(
            f"{source} {has} DDC-AT's heads but the network {lacks} them; build {type(net).__name__} with "
            f"ddc_at={ddc_at}"
        )
    layout = _released(net)
    classes = weights.get(f"{layout['head']}.4.bias")
    if classes is not None and len(classes) != net.out_channels:
        raise ValueError(
            f"{source} is of {len(classes)} classes but the network has {net.out_channels}; build "
            f"{type(net).__name__} with out_channels={len(classes)}"
        )
    _put(net, weights, layout, source, _described(net))


def load_rog(net: ROG, path: str | Path) -> None:
    """Put a published checkpoint of ROG, or of SEAT's fine-tuning of it, into `net`.

    Args:
        net: is changed; of the file's number of channels and classes. Strides are not in the file: take the task's.
        path: a .safetensors file, or one that `torch.save` wrote, of which only the weights are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds code, is of another number of channels or classes or of another
            network, or not finite.
    """
    weights, source = read_state_dict(path), f"checkpoint {str(path)!r}"
    weights = {name.removeprefix(ROG_PREFIX): value for name, value in weights.items()}
    first, last = weights.get("stem.0.0.conv.weight"), weights.get("final.1.weight")
    for name, layer, own in (("in_channels", first, net.in_channels), ("out_channels", last, net.out_channels)):
        if layer is not None and layer.dim() and len(layer) != own:
            what = "channels" if name == "in_channels" else "classes"
            raise ValueError(
                f"{source} is of a task with {len(layer)} {what} but the network has {own}; build ROG with "
                f"{name}={len(layer)}, or take the weights of this task"
            )
    _put(net, weights, {name: name for name, _ in net.named_children()}, source, "ROG")


def load_vgg11(net: UNet11, path: str | Path) -> None:
    """Put ImageNet weights of VGG-11 without batch normalisation, in torchvision's layout, into the encoder of `net`.

    Args:
        net: is changed, but for its decoder. With one channel its first layer gets the sum over the file's three, which
            is what the three make of a grey picture.
        path: a .safetensors file, or one that `torch.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds code, weights are missing, unexpected or of another shape (each named
            as the file has it), or not finite.
    """
    weights, source = read_state_dict(path), f"checkpoint {str(path)!r}"
    weights = {name: value for name, value in weights.items() if not name.startswith(VGG_CLASSIFIER)}
    weights = _for_channels(weights, "features.0.weight", net.in_channels)
    _put(net, weights, {own: f"features.{place}" for own, place in VGG11.items()}, source, "the encoder of UNet11")


def load_ternausnet(net: UNet11, path: str | Path) -> None:
    """Put a published checkpoint of TernausNet's UNet11 into `net`.

    A file has each convolution of the encoder under one of two names, or under both; its values must be the same then.

    Args:
        net: is changed; with one channel as `load_vgg11` says.
        path: a .safetensors file, or one that `torch.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `load_vgg11`, or the two names of a convolution have different values.
    """
    weights, source = read_state_dict(path), f"checkpoint {str(path)!r}"
    for own, place in VGG11.items():
        for part in ("weight", "bias"):
            alias = weights.pop(f"encoder.{place}.{part}", None)
            name = f"{own}.{part}"
            if alias is not None and not torch.equal(weights.setdefault(name, alias), alias):
                raise ValueError(
                    f"{source} has different values under 'encoder.{place}.{part}' and {name!r}, which are one "
                    f"convolution; take a file as the training wrote it"
                )
    weights = _for_channels(weights, "conv1.weight", net.in_channels)
    layout = {**{own: own for own in VGG11}, "dec1": "dec1.conv", "final": "final"}
    for part in ("center", "dec5", "dec4", "dec3", "dec2"):
        layout |= {f"{part}.0": f"{part}.block.0.conv", f"{part}.2": f"{part}.block.1"}
    _put(net, weights, layout, source, "UNet11")


def _for_channels(weights: Mapping[str, Tensor], first: str, channels: int) -> dict[str, Tensor]:
    """The weights; with one channel, those of the first layer summed over the three of the file."""
    kernel = weights.get(first)
    if channels == 1 and kernel is not None and kernel.ndim == 4 and kernel.shape[1] == 3:
        return {**weights, first: kernel.sum(dim=1, keepdim=True)}
    return dict(weights)


def _released(net: DilatedSegmenter) -> dict[str, str]:
    """Layout of the released programs."""
    layout = {"layer0": "layer0", **STAGES, "context": "ppm" if isinstance(net, PSPNet) else "aspp"}
    if net.ddc_at:
        heads = {"head": "cls1", "adversarial_head": "cls2", "mask_head": "mask1", "auxiliary_head": "aux_cls1"}
    else:
        heads = {"head": "cls", "auxiliary_head": "aux"}
    return layout | heads


def _check_stem(net: DilatedSegmenter, deep: bool, source: str) -> None:
    if deep != net.deep_stem:
        stems = ("one 7x7 convolution", "three 3x3 convolutions")
        raise ValueError(
            f"{source} has a stem of {stems[deep]} but the network one of {stems[net.deep_stem]}; build "
            f"{type(net).__name__} with deep_stem={deep}, or take other weights"
        )


def _described(net: DilatedSegmenter) -> str:
    return f"{type(net).__name__} on {net.backbone}"


def _put(net: nn.Module, weights: Mapping[str, Tensor], layout: Mapping[str, str], source: str, described: str) -> None:
    """Put exactly the weights of the parts in `layout` into `net`, which errors describe so.

    Raises:
        ValueError: some are missing or unexpected, or do not fit.
    """
    names = {
        name: theirs + name.removeprefix(ours)
        for name in net.state_dict()
        for ours, theirs in layout.items()
        if name.startswith(f"{ours}.")
    }
    put_weights(net, weights, names, source, described)

"""Weights that others have trained, in their own layouts (docs/rp-pgd.md, Method 13; docs/seat.md, Method 8).

A layout says which name a file has for each part of the network. Files are safetensors or PyTorch's own, of which only
tensors, numbers and text are read: never code.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.checkpoints import check_weights, load_weights
from ..common.reading import quoted
from .dilated import DilatedSegmenter
from .pspnet import PSPNet
from .rog import ROG

STAGES = {f"layer{number}": f"layer{number}" for number in range(1, 5)}
TORCHVISION = {"layer0.0": "conv1", "layer0.1": "bn1", **STAGES}
"""ImageNet weights of torchvision: a stem of 7x7."""
SEMSEG = {"layer0.3": "conv2", "layer0.4": "bn2", "layer0.6": "conv3", "layer0.7": "bn3", **TORCHVISION}
"""ImageNet weights of semseg (`resnet50_v2`): a stem of three 3x3 convolutions."""
CLASSIFIER = "fc."
"""Beginning of the names of the ImageNet classifier, which no segmenter has."""
COUNTER = ".num_batches_tracked"
"""End of the names of a counter that nothing here reads and that old files lack."""
ROG_PREFIX = "ROG."
"""Beginning of the names of ROG's published weights, after "module."."""
NUMPY_TYPES = (np.float64, np.float32, np.int64, np.uint32)
"""Of the numbers beside the weights, such as the state of NumPy's random generator."""
NAMED = 5
"""Weights that an error names, at most."""


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


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Weights by name, on the CPU, without what wraps them: `state_dict` around, "module." before each name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than tensors, numbers and text, or no weights by name.
    """
    if Path(path).suffix == ".safetensors":
        found: object = load_weights(path)[0]
    elif not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {quoted(str(path))} does not exist; name a file of weights")
    else:
        try:
            with torch.serialization.safe_globals(_numpy_globals()):
                found = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # PyTorch's reader raises anything on a malformed file: EOFError, KeyError, ...
            raise ValueError(
                f"checkpoint {str(path)!r} holds more than tensors, numbers and text, or is damaged "
                f"({type(error).__name__}): not read, since it could run code; save its weights with safetensors"
            ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(
            f"checkpoint {str(path)!r} holds {quoted(type(found).__name__)} but weights by name, or state_dict with "
            f"them, are needed; save the network's state_dict()"
        )
    weights = {str(name): value for name, value in found.items()}
    wrapped = all(name.startswith("module.") for name in weights)
    return {name.removeprefix("module."): value for name, value in weights.items()} if wrapped else weights


def _numpy_globals() -> list[Any]:
    """What makes arrays and numbers of NumPy again, under the names of its versions 1 and 2; none of it runs code."""
    makers: list[Any] = [np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]]
    named = [(make, f"numpy.{core}.multiarray.{make.__name__}") for make in makers for core in ("core", "_core")]
    return [*named, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in NUMPY_TYPES)]


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
    own = net.state_dict()
    names = {
        name: theirs + name.removeprefix(ours)
        for name in own
        for ours, theirs in layout.items()
        if name.startswith(f"{ours}.")
    }
    missing = [name for name in names.values() if name not in weights and not name.endswith(COUNTER)]
    known = set(names.values())
    unexpected = [name for name in weights if name not in known]
    if missing or unexpected:
        raise ValueError(
            f"{source} does not fit {described}: missing {_listed(missing)}, unexpected "
            f"{_listed(unexpected)}; build the network as the weights were trained"
        )
    own |= {name: weights[theirs] for name, theirs in names.items() if theirs in weights}
    check_weights(net, own, source)
    net.load_state_dict(own)


def _listed(names: Iterable[str]) -> str:
    """ "none", or the first names and how many more there are."""
    known = list(names)
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(quoted(name) for name in known[:NAMED]) + more if known else "none"

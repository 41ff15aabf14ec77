"""Victims on disk: a network, the mean and deviation that it wants its images normalised with, and its classes, in one
file. What trains one writes it; environments, attacks and evaluation read it (docs/rp-pgd.md, Method 17)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..common.checkpoints import load_weights
from ..common.networks import Network, load_network, save_network
from ..common.reading import parse_json
from ..segmenters.deeplab import DeepLabV3
from ..segmenters.pspnet import PSPNet
from ..segmenters.rog import ROG
from ..segmenters.unet import UNet
from ..segmenters.volume_networks import DynUNet, SegResNet, SmallVolumeNet, UNet3D
from .victim import Normalized

NETWORKS: dict[str, type[Network]] = {
    "pspnet": PSPNet, "deeplab": DeepLabV3, "unet": UNet,
    "rog": ROG, "segresnet": SegResNet, "unet3d": UNet3D, "dynunet": DynUNet, "small3d": SmallVolumeNet,
}  # fmt: skip
"""The networks by the name that configurations give: of images, and of volumes."""
FEATURE_LAYERS = {"pspnet": "layer4", "deeplab": "layer4", "unet": "merge.1"}
"""Submodule of each network of images whose output prototypes are made of: all at an eighth of the image's size."""
_WEIGHTS = Path(__file__).parents[1] / "segmenters" / "weights"
PACKAGED = {"scenes": _WEIGHTS / "scene_phantom.safetensors", "liver": _WEIGHTS / "liver_slice_phantom.safetensors"}
"""The victims that come with the package, by what their phantoms show; cards beside them say how they were made."""
PACKAGED_VOLUMES = {"toy": _WEIGHTS / "toy_volume_phantom.safetensors"}
"""Those of volumes, by the task whose phantoms they were trained on."""


def feature_layer_of(victim: nn.Module) -> str:
    """The submodule of a victim that its prototypes are usually made of.

    Raises:
        ValueError: none is known of this network.
    """
    for name, layer in FEATURE_LAYERS.items():
        if isinstance(victim, Normalized) and isinstance(victim.model, NETWORKS[name]):
            return f"model.{layer}"
    raise ValueError(
        f"no feature_layer is known of a {type(victim).__name__}; give the name of a submodule, or None to leave the "
        "prototype terms out"
    )


def save_victim(path: Path, victim: Normalized, classes: Sequence[str], metadata: dict[str, Any] | None = None) -> None:
    """Write a normalised network and the names of its classes into one file.

    metadata: what else is to be known of it, by name; values that JSON can hold.

    Raises:
        TypeError: the normalised model is no network that can be built again (`Network`).
    """
    if not isinstance(victim.model, Network):
        raise TypeError(f"the model is a {type(victim.model).__name__} but must be a Network, to be built again")
    mean, std = victim.mean.tolist(), victim.std.tolist()
    save_network(path, victim.model, {"mean": mean, "std": std, "classes": list(classes), **(metadata or {})})


def load_victim(path: str | Path, classes: int | None = None) -> tuple[Normalized, tuple[str, ...]]:
    """The network that `save_victim` wrote, in evaluation mode on the CPU, and the names of its classes.

    classes: how many it must have; None: any number.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file, one of another kind, or a network of another number of classes.
    """
    needed = {} if classes is None else {"out_channels": classes}
    network = load_network(path, [*NETWORKS.values()], **needed)
    source, metadata = f"checkpoint {str(path)!r}", load_weights(path)[1]
    try:
        mean, std, names = (parse_json(metadata[key], key) for key in ("mean", "std", "classes"))
        victim = Normalized(network, mean, std)
        names = tuple(str(name) for name in names)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{source} does not say how its images are normalised ({error}); name a file that save_victim wrote"
        ) from error
    if len(names) != network.description["out_channels"] or len(mean) != network.description["in_channels"]:
        raise ValueError(
            f"{source} names {len(names)} classes and {len(mean)} channels but its network has "
            f"{network.description['out_channels']} and {network.description['in_channels']}; train it again"
        )
    return victim.eval(), names

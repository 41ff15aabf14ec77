"""The attacked model: normalisation as its first layer, frozen while it is attacked, its features beside its logits.

The contract is docs/rp-pgd.md, Method 3: any module that gives logits [B, K, *spatial] of images [B, C, *spatial].
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..common.checks import closest_choice


class Normalized(nn.Module):
    """A model behind (x - mean) / std per channel, so that attack, epsilon and bounds are in units of the image.

    Args:
        model: gives logits of normalised images.
        mean: of each channel, in units of the image.
        std: of each channel, above 0.

    Raises:
        ValueError: of different lengths, or a std that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"mean is {mean!r} and std {std!r} but each channel needs one of both, std above 0")
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def normalize(self, images: Tensor) -> Tensor:
        """(x - mean) / std of images [B, C, *spatial]."""
        mean, std = self._shaped(images)
        return (images - mean) / std

    def denormalize(self, images: Tensor) -> Tensor:
        """x std + mean of normalised images [B, C, *spatial]."""
        mean, std = self._shaped(images)
        return images * std + mean

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K, *spatial] of images [B, C, *spatial] that are not normalised."""
        logits: Tensor = self.model(self.normalize(images))
        return logits

    def _shaped(self, images: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (images.dim() - 2))
        return self.mean.to(images.dtype).view(shape), self.std.to(images.dtype).view(shape)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and parameters without gradient inside; each module's mode and each parameter's flag as before.

    Running statistics stay as they are, and no parameter gets a `.grad`.
    """
    training = [module for module in model.modules() if module.training]
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        if training:
            model.eval()
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in wanting:
            parameter.requires_grad_(True)


def check_logits(logits: object, images: Tensor) -> None:
    """Raises ValueError: what a model gives of images [B, C, *spatial] is no tensor [B, K, *spatial]."""
    shape = [len(images), "K", *images.shape[2:]]
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model gives {type(logits).__name__} but must give logits, a tensor {shape}")
    if logits.dim() != images.dim() or [len(logits), *logits.shape[2:]] != [len(images), *images.shape[2:]]:
        raise ValueError(f"the model gives logits {list(logits.shape)} but must give {shape}")


def logits_and_features(model: nn.Module, images: Tensor, layer: str | None) -> tuple[Tensor, Tensor | None]:
    """Logits [B, K, *spatial], and of the same pass the output [B, D, *grid] of the submodule `layer`, attached.

    Args:
        model: the attacked model.
        images: [B, C, *spatial].
        layer: name of a submodule, such as "layer4" ("model.layer4" behind `Normalized`); None: no features.

    Raises:
        ValueError: there is no such submodule, or its output is no tensor of the images' number of axes.
    """
    if layer is None:
        return model(images), None
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"feature_layer is {layer!r} but the model has no such module{closest_choice(layer, modules)}")
    found: list[Tensor] = []
    handle = modules[layer].register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        logits = model(images)
    finally:
        handle.remove()
    if not found or not isinstance(found[-1], Tensor) or found[-1].dim() != images.dim():
        kind = tuple(found[-1].shape) if found and isinstance(found[-1], Tensor) else type(found[-1]) if found else None
        raise ValueError(f"the output of feature_layer {layer!r} is {kind} but must be a tensor [B, D, *grid]")
    return logits, found[-1]

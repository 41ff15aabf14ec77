"""A 3-D U-Net for volumes, and its training with labels of every voxel (docs/spars.md, Method 12).

Symbols: x = volumes [B, 1, X, Y, Z] in [0, 1]; K = classes: background, liver, tumour.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet as MonaiUNet
from torch import Generator, Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, check, check_range
from ..common.device import bfloat16_on_cuda, forked_rng
from ..common.fitting import Scalars, descend, fit
from ..common.networks import Network
from ..common.overlap import class_dice
from ..common.runs import Run
from ..datasets.liver.cases import CLASSES, LiverCase
from ..datasets.liver.lesions import TUMOUR

CHANNELS = (16, 32, 64, 128, 256)
RESIDUAL_UNITS = 2
"""Convolutions of each residual unit."""
MOST_LEVELS = 8


@dataclass(frozen=True)
class VolumeUNetConfig:
    """Supervised training of a 3-D U-Net."""

    channels: tuple[int, ...] = CHANNELS
    """Maps of each level: the first at half the size of the volume, each further one at half of the one before."""
    volumes_per_batch: int = 2
    """Volumes per optimiser step, drawn with replacement."""
    batches_per_epoch: int = 40
    """Optimiser steps per epoch."""
    epochs: int = 20
    """Number of epochs; each ends with a validation."""
    learning_rate: float = 1e-3
    """AdamW learning rate at the start; it falls to 0 along a cosine."""
    weight_decay: float = 1e-4
    """AdamW weight decay."""
    flip_probability: float = 0.5
    """Probability of a flip along each axis, 0 to 1."""

    def __post_init__(self) -> None:
        check(self, "unet.", volumes_per_batch=AT_LEAST_1, batches_per_epoch=AT_LEAST_1, epochs=AT_LEAST_1)
        check(self, "unet.", learning_rate=POSITIVE, weight_decay=AT_LEAST_0, flip_probability=SHARE)
        check_channels("unet.channels", self.channels)


def check_channels(name: str, channels: Sequence[int]) -> None:
    """Check the maps of each level.

    Raises:
        ValueError: fewer than two levels, or a level without maps; names `name`, its value and the rule.
    """
    check_range(name, tuple(channels), AT_LEAST_1)
    if not 2 <= len(channels) <= MOST_LEVELS:
        raise ValueError(f"{name} is {tuple(channels)} but must have 2 to {MOST_LEVELS} levels")


class VolumeUNet(Network):
    """MONAI's U-Net for volumes of any size: padded with 0, the value of air, to what its levels halve, and cut again.

    Instance normalisation and PReLU; no activation at the end.

    Args:
        channels: maps of each level, from half the size down.

    Raises:
        ValueError: as `check_channels`.
    """

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        check_channels("channels", channels)
        self.channels = channels
        self.body = MonaiUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=CLASSES,
            channels=channels,
            strides=(2,) * (len(channels) - 1),
            num_res_units=RESIDUAL_UNITS,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [B, K, X, Y, Z]."""
        unit = 2 ** (len(self.channels) - 1)
        pad: list[int] = []
        for size in x.shape[2:]:
            pad = [0, -size % unit if size > unit else 2 * unit - size, *pad]  # one voxel has no variance
        with bfloat16_on_cuda(x.device):
            logits: Tensor = self.body(F.pad(x, pad))
        return logits[..., : x.shape[2], : x.shape[3], : x.shape[4]].float()

    @torch.no_grad()
    def tumour_probability(self, volume: Tensor) -> Tensor:
        """P(tumour) of every voxel, float32 [X, Y, Z], of a volume uint8 [X, Y, Z]; in eval mode."""
        logits: Tensor = self(volume[None, None].float() / 255)
        return logits.softmax(dim=1)[0, TUMOUR]


def train_volume_unet(
    train_cases: Sequence[LiverCase],
    val_cases: Sequence[LiverCase],
    config: VolumeUNetConfig,
    run: Run,
    device: torch.device,
    seed: int,
) -> VolumeUNet:
    """The U-Net with the highest mean Dice of the tumours of the validation cases, in eval mode.

    The loss is 1 minus the soft Dice, a mean over volumes and classes, plus the cross-entropy of all voxels. A run that
    was interrupted is continued; on a CPU it ends with the same weights, bit for bit.

    Args:
        train_cases: labelled cases of one shape.
        val_cases: the same, of other patients, some of them with tumours.
        config: see there.
        run: the stage: receives `unet/loss` and `unet/dice` (x axis: epochs) and checkpoints.
        device: where it is computed.
        seed: of weights, cases and flips.

    Raises:
        ValueError: a case without label or of another shape, no tumour to validate by, or a loss that is not finite.
    """
    images, labels = _stacked(train_cases, device)
    val_images, val_labels = _stacked(val_cases, device)
    judged = (val_labels == TUMOUR).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if not judged:
        raise ValueError(
            f"none of the {len(val_cases)} validation cases ({val_cases[0].id}, ...) has a tumour, and the U-Net's "
            f"best epoch is chosen by them; choose others by --validation.cases"
        )
    with forked_rng(device):
        torch.manual_seed(seed)
        net = VolumeUNet(config.channels).to(device)
    optimizer = AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = CosineAnnealingLR(optimizer, T_max=config.epochs * config.batches_per_epoch)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)

    def train_epoch(net: VolumeUNet, generator: Generator) -> Scalars:
        total = torch.zeros((), device=device)
        for _ in range(config.batches_per_epoch):
            rows = torch.randint(len(images), (config.volumes_per_batch,), generator=generator).to(device)
            flips = torch.rand(3, generator=generator) < config.flip_probability
            axes = [axis + 1 for axis, flipped in enumerate(flips.tolist()) if flipped]
            x, truth = (volumes[rows].flip(axes)[:, None] for volumes in (images, labels))
            loss = criterion(net(x.float() / 255), truth)
            descend(optimizer, loss)
            schedule.step()
            total += loss.detach() / config.batches_per_epoch
        return {"loss": total}

    def validate(net: VolumeUNet) -> tuple[float, Scalars]:
        dice = [_tumour_dice(net, val_images[row], val_labels[row]) for row in judged]
        mean = float(torch.stack(dice).mean())
        return mean, {"dice": mean}

    fit(
        run,
        net,
        optimizer,
        name="unet",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        state={"schedule": schedule},
    )
    return net


def _tumour_dice(net: VolumeUNet, image: Tensor, label: Tensor) -> Tensor:
    """Dice of the most probable class's tumour, a number."""
    found = net(image[None, None].float() / 255).argmax(dim=1)
    return class_dice(found, label[None], [TUMOUR])[0, 0]


def _stacked(cases: Sequence[LiverCase], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels, uint8 [C, X, Y, Z]."""
    labels = []
    for case in cases:
        if case.label is None:
            raise ValueError(f"{case.id} has no label, which the U-Net's training needs; use labelled cases")
        labels.append(case.label)
    if len(shapes := {tuple(case.image.shape) for case in cases}) != 1:
        raise ValueError(f"the U-Net needs cases of one shape, but got {sorted(shapes) or 'no case'}")
    return torch.stack([case.image for case in cases]).to(device), torch.stack(labels).to(device)

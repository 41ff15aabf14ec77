"""Supervised training of a segmenter on a pool of labelled images (docs/rl4seg.md, Method 5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.optim import Adam

from ..common.checks import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, check
from ..common.fitting import Scalars, descend, fit, shuffled_rows
from ..common.overlap import class_dice
from ..common.runs import Run
from ..common.workers import ONE_PROCESS, Workers
from ..datasets.images import ImagePool
from .inference import device_of, logits_of, segment
from .unet import UNet

Loss = Literal["ce", "ce_double_softmax"]


@dataclass(frozen=True)
class SupervisedConfig:
    """Supervised training of a segmenter. Defaults: the paper's program, but for the loss."""

    epochs: int = 50
    """Passes over the training images; 0 leaves the network as it is."""
    learning_rate: float = 1e-3
    """Adam learning rate."""
    batch_size: int = 32
    """Images per step, at most."""
    loss: Loss = "ce"
    """ce: cross-entropy of the logits. ce_double_softmax: of the probabilities taken for logits, as the paper's program
    does; it cannot fall below 0.5514 for three classes, and the policy stays less certain."""
    label_smoothing: float = 0.0
    """Share of the truth that is spread over all classes, in [0, 1)."""

    def __post_init__(self) -> None:
        check(self, "supervised.", epochs=AT_LEAST_0, learning_rate=POSITIVE, batch_size=AT_LEAST_1)
        check(self, "supervised.", label_smoothing=(0, BELOW_1))


def train_segmenter(
    net: UNet,
    train: ImagePool,
    val: ImagePool | None,
    config: SupervisedConfig,
    run: Run,
    seed: int,
    *,
    workers: Workers = ONE_PROCESS,
) -> dict[str, float]:
    """Train `net`, which then holds its best epoch, in eval mode; returns that epoch's scalars.

    Args:
        net: is changed; stays on its device.
        train: labelled images.
        val: labelled images of other patients: the best mean Dice of all classes but the background chooses the epoch.
            None: the last epoch is the best, for self-training on gold masks, where no truth may choose.
        config: see there.
        run: the stage: receives `segmenter/loss`, `segmenter/dice` and `segmenter/dice_<class>`.
        seed: of the order of the images, and of dropout.
        workers: the processes that train together.

    Raises:
        ValueError: images without labels, or a loss that is no longer finite.
    """
    device = device_of(net)
    train, val = train.to(device), val and val.to(device)
    truth = truth_of(train, net.out_channels)
    val_truth = truth_of(val, net.out_channels) if val else None
    optimizer = Adam(net.parameters(), lr=config.learning_rate)

    def train_epoch(net: UNet, generator: Generator) -> Scalars:
        total = torch.zeros((), device=device)
        for rows in shuffled_rows(len(train), config.batch_size, generator, device, workers):
            loss = supervised_loss(logits_of(net, train.at(rows)), truth[rows], config)
            descend(optimizer, loss, workers, len(rows))
            total += loss.detach() * len(rows) / len(train)
        return {"loss": total}

    def validate(net: UNet) -> tuple[float | None, Scalars]:
        if val is None or val_truth is None:
            return None, {}
        scalars = dice_scalars(segment(net, val.images), val_truth, val.classes)
        return scalars["dice"], scalars

    return fit(
        run,
        net,
        optimizer,
        name="segmenter",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        workers=workers,
    )


def supervised_loss(logits: Tensor, labels: Tensor, config: SupervisedConfig) -> Tensor:
    """Mean cross-entropy over all pixels. logits float32 [B, K, H, W]; labels [B, H, W], values 0..K-1."""
    scores = logits.softmax(dim=1) if config.loss == "ce_double_softmax" else logits
    return F.cross_entropy(scores, labels.long(), label_smoothing=config.label_smoothing)


def dice_scalars(labels: Tensor, truth: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """`dice_<name>` of each class but the first, the background, a mean over the images; and their mean `dice`.

    labels, truth: [N, H, W] with values 0..K-1; classes: their K names.
    """
    means = class_dice(labels, truth, range(1, len(classes))).mean(dim=0).tolist()
    named = {f"dice_{name}": mean for name, mean in zip(classes[1:], means, strict=True)}
    return {"dice": sum(means) / len(means), **named}


# -- one step ------------------------------------------------------------------------------------------------------


def truth_of(images: ImagePool, classes: int) -> Tensor:
    """Their labels.

    Raises:
        ValueError: no labels, or a label that is none of the classes 0..classes-1.
    """
    if images.labels is None:
        raise ValueError(
            f"{images.ids[0]} and the other images have no labels, which training needs; use a labelled set"
        )
    if (highest := int(images.labels.max())) >= classes:
        raise ValueError(f"labels go up to {highest} but the network has the classes 0..{classes - 1}")
    return images.labels

"""Supervised training of any segmentation network on any pool of labelled images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from ..common.checks import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, check, check_range
from ..common.fitting import Scalars, descend, fit, shuffled_rows
from ..common.overlap import class_dice
from ..common.runs import Run
from ..common.workers import ONE_PROCESS, Workers
from ..datasets.images import ImagePool
from .inference import device_of, logits_of, segment

Loss = Literal["ce", "ce_double_softmax"]
NO_LABEL = -100
"""A label that there is not, PyTorch's own default: nothing is ignored."""


@dataclass(frozen=True)
class SupervisedConfig:
    """Supervised training of a segmenter."""

    section: ClassVar[str] = ""
    """Where an experiment holds these settings, with a dot at the end; errors name it. A subclass sets it."""
    epochs: int = 50
    """Passes over the training images; 0 leaves the network as it is."""
    learning_rate: float = 1e-3
    """Adam learning rate."""
    batch_size: int = 32
    """Images per step, at most."""
    loss: Loss = "ce"
    """ce: cross-entropy of the logits. ce_double_softmax: of the probabilities taken for logits; it cannot fall below
    0.5514 for three classes, and the network stays less certain."""
    label_smoothing: float = 0.0
    """Share of the truth that is spread over all classes, in [0, 1)."""

    def __post_init__(self) -> None:
        check(self, self.section, epochs=AT_LEAST_0, learning_rate=POSITIVE, batch_size=AT_LEAST_1)
        check(self, self.section, label_smoothing=(0, BELOW_1))


def train_segmenter(
    net: nn.Module,
    train: ImagePool,
    val: ImagePool | None,
    config: SupervisedConfig,
    run: Run,
    seed: int,
    *,
    classes: int | None = None,
    ignore_index: int | None = None,
    workers: Workers = ONE_PROCESS,
) -> dict[str, float]:
    """Train `net`, which then holds its best epoch, in eval mode; returns that epoch's scalars.

    Args:
        net: gives logits [B, classes, H, W] of images float32 [B, C, H, W] in [0, 1]; is changed; stays on its device.
        train: labelled images.
        val: labelled images of other patients: the best mean Dice of all classes but the background chooses the epoch.
            None: the last epoch is the best, for self-training on gold masks, where no truth may choose.
        config: see there.
        run: the stage: receives `segmenter/loss`, `segmenter/dice` and `segmenter/dice_<class>`.
        seed: of the order of the images, and of dropout.
        classes: K, number of classes that the network tells apart; default: those of `train.classes`.
        ignore_index: label of pixels that count in no loss and no Dice, such as 255, and is no class; None: all count.
        workers: the processes that train together. With `ignore_index` their losses are averaged by images, not pixels.

    Raises:
        ValueError: images without labels, a label that is no class, an image whose pixels are all ignored, logits of
            another shape, or a loss that is no longer finite.
    """
    device = device_of(net)
    classes = len(train.classes) if classes is None else classes
    check_range("classes", classes, (2, 256))
    train, val = train.to(device), val and val.to(device)
    truth = truth_of(train, classes, ignore_index)
    val_truth = truth_of(val, classes, ignore_index) if val else None
    optimizer = Adam(net.parameters(), lr=config.learning_rate)

    def train_epoch(net: nn.Module, generator: Generator) -> Scalars:
        total = torch.zeros((), device=device)
        for rows in shuffled_rows(len(train), config.batch_size, generator, device, workers):
            logits, labels = logits_of(net, train.at(rows)), truth[rows]
            if logits.shape != (expected := (len(rows), classes, *labels.shape[1:])):
                raise ValueError(
                    f"the logits are {list(logits.shape)} but must be {list(expected)}, [B, classes, H, W]; "
                    f"give a network with {classes} output channels and an output of the images' size"
                )
            loss = supervised_loss(logits, labels, config, ignore_index)
            descend(optimizer, loss, workers, len(rows))
            total += loss.detach() * len(rows) / len(train)
        return {"loss": total}

    def validate(net: nn.Module) -> tuple[float | None, Scalars]:
        if val is None or val_truth is None:
            return None, {}
        scalars = dice_scalars(segment(net, val.images), val_truth, val.classes[:classes], ignore_index)
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


def supervised_loss(
    logits: Tensor, labels: Tensor, config: SupervisedConfig, ignore_index: int | None = None
) -> Tensor:
    """Mean cross-entropy over all pixels whose label is not `ignore_index`; NaN where there is none.

    logits float32 [B, K, H, W]; labels [B, H, W], values 0..K-1 or `ignore_index`.
    """
    scores = logits.softmax(dim=1) if config.loss == "ce_double_softmax" else logits
    ignored = NO_LABEL if ignore_index is None else ignore_index
    return F.cross_entropy(scores, labels.long(), ignore_index=ignored, label_smoothing=config.label_smoothing)


def dice_scalars(
    labels: Tensor, truth: Tensor, classes: Sequence[str], ignore_index: int | None = None
) -> dict[str, float]:
    """`dice_<name>` of each class but the first, the background, a mean over the images; and their mean `dice`.

    labels, truth: [N, H, W] with values 0..K-1, where the truth is `ignore_index` no class; classes: their K names.
    """
    if ignore_index is not None:
        labels = labels.masked_fill(truth == ignore_index, ignore_index)
    means = class_dice(labels, truth, range(1, len(classes))).mean(dim=0).tolist()
    named = {f"dice_{name}": mean for name, mean in zip(classes[1:], means, strict=True)}
    return {"dice": sum(means) / len(means), **named}


# -- one step ------------------------------------------------------------------------------------------------------


def truth_of(images: ImagePool, classes: int, ignore_index: int | None = None) -> Tensor:
    """Their labels, uint8 [N, H, W].

    Raises:
        ValueError: no labels, a label that is none of the classes 0..classes-1 nor `ignore_index`, an `ignore_index`
            that is one of them or no uint8, or an image without any other label.
    """
    if images.labels is None:
        raise ValueError(
            f"{images.unlabelled[0]} has no labels, which training needs ({len(images.unlabelled)} of {len(images)} "
            "have none); use labelled images"
        )
    labels = images.labels
    if ignore_index is not None:
        check_range("ignore_index", ignore_index, (classes, 255))
        counted = labels != ignore_index
        if empty := (~counted.flatten(1).any(dim=1)).nonzero().flatten().tolist():
            raise ValueError(f"{images.ids[empty[0]]} has no label but ignore_index {ignore_index}; take it out")
        labels = labels[counted]
    if (highest := int(labels.max())) >= classes:
        raise ValueError(
            f"labels go up to {highest} but the network has the classes 0..{classes - 1}; map the others to a class, "
            f"or name the label of pixels without one as ignore_index"
        )
    return images.labels

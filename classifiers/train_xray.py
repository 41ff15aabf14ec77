"""Training of a classifier of X-rays on plain images (docs/apga.md, Method 7)."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR

from ..common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, check
from ..common.device import bfloat16_on_cuda, forked_rng
from ..common.fitting import Scalars, descend, fit, shuffled_rows
from ..common.networks import load_network, save_network
from ..common.runs import Run
from ..datasets.xray.augmentation import Augment, augmented
from .xray import Architecture, Normalize, XrayClassifier, load_imagenet, probabilities, to_unit

FILE = "classifier.safetensors"
"""Name of the trained classifier in the folder of its stage."""
Metrics = Callable[[Tensor, Tensor], Mapping[str, float]]
"""Metrics by name, of probabilities [N, K] and labels int64 [N]: at least those of `CURVES`."""
CURVES = {"accuracy": "val_acc", "auroc": "val_auroc", "kappa": "val_kappa"}
"""Validation metrics that are logged, and their curves."""


class LabelledImages(Protocol):
    """Images with one label each, on one device."""

    @property
    def images(self) -> Tensor:
        """uint8 [N, 1, H, W]."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], classes 0..K-1."""


@dataclass(frozen=True)
class XrayTrainingConfig:
    """A classifier of X-rays and its training on plain images; docs/apga.md, Method 7."""

    section: ClassVar[str] = "classifier."
    """Where an experiment holds these settings."""
    network: Architecture = "densenet169"
    """densenet169 (paper), or small_cnn: four convolutions, for phantoms and two cores."""
    in_channels: Literal[1, 3] = 3
    """Channels of the first layer; 3 (paper's program): a grey picture is repeated."""
    normalize: Normalize = "none"
    """imagenet: takes ImageNet's mean off, and divides by its deviation, after any mask; none: paper's program."""
    imagenet: str | None = None
    """File of ImageNet weights of torchvision's DenseNet-169 to begin with; null: none."""
    pretrained: str | None = None
    """Classifier of an earlier run to begin with, such as one of all body parts; null: none."""
    epochs: int = 100
    """Passes over the training images, at most; 0 leaves the network as it is."""
    patience: int = 15
    """Training ends after patience + 1 epochs in a row without a higher validation accuracy than all before."""
    learning_rate: float | None = None
    """Adam learning rate; null: 1e-3 from random weights, 1e-4 from others."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate: falls to 0 along a cosine over all epochs, or stays."""
    batch_size: int = 64
    """Images per step, at most (paper's program: 25)."""
    augment: Augment = "none"
    """geometric: mirrored left to right by chance, and turned by up to 30 degrees."""

    def __post_init__(self) -> None:
        check(self, self.section, epochs=AT_LEAST_0, patience=AT_LEAST_0, batch_size=AT_LEAST_1)
        check(self, self.section, learning_rate=POSITIVE)
        if self.imagenet is not None and self.pretrained is not None:
            raise ValueError(
                f"{self.section}imagenet is {self.imagenet!r} and {self.section}pretrained is {self.pretrained!r} but "
                f"a network begins with one of them; set the other to null"
            )

    @property
    def begins_as(self) -> Literal["random", "imagenet", "pretrained"]:
        """What the weights are at first."""
        return "imagenet" if self.imagenet is not None else "random" if self.pretrained is None else "pretrained"

    @property
    def first_rate(self) -> float:
        """Learning rate of the first step."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-3 if self.begins_as == "random" else 1e-4


def build_classifier(config: XrayTrainingConfig, classes: int, seed: int, device: torch.device) -> XrayClassifier:
    """The classifier that the training begins with; `seed` is of its random weights.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ValueError: the file does not fit the network that the configuration describes.
    """
    settings = {"network": config.network, "in_channels": config.in_channels, "normalize": config.normalize}
    if config.pretrained is not None:
        return load_network(config.pretrained, XrayClassifier, **settings, out_channels=classes).to(device)
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(seed)
        net = XrayClassifier(config.network, config.in_channels, classes, config.normalize)
    if config.imagenet is not None:
        load_imagenet(net, config.imagenet)
    return net.to(device)


def train_xray(
    net: XrayClassifier,
    train: LabelledImages,
    val: LabelledImages,
    config: XrayTrainingConfig,
    run: Run,
    seed: int,
    *,
    metrics: Metrics,
) -> dict[str, float]:
    """Train `net`, which then holds its epoch of the highest validation accuracy, in eval mode, and write it.

    Args:
        net: is changed; stays on its device.
        train: images to learn from.
        val: images of other patients, which choose the epoch.
        config: see there.
        run: the stage: receives `classifier/loss_plain` (cross-entropy in nats), `classifier/val_acc`,
            `classifier/val_auroc` and `classifier/val_kappa`, checkpoints and `classifier.safetensors`.
        seed: of the order of the images and their random changes.
        metrics: computes what is watched; handed in, because `evaluation` stands above this package.

    Returns:
        The scalars of that epoch, and its number as "epoch".

    Raises:
        ValueError: images of one class only, or a label that is no class of `net`.
        NotFiniteError: a loss or a weight is NaN or infinite.
    """
    for purpose, pool in (("training", train), ("validation", val)):
        check_classes(pool.labels, net.out_channels, purpose)
    device = next(net.parameters()).device
    images, labels = train.images.to(device), train.labels.to(device)
    optimizer = Adam(net.parameters(), lr=config.first_rate)
    batches = -(-len(images) // config.batch_size)
    schedule: CosineAnnealingLR | ConstantLR = ConstantLR(optimizer, factor=1.0)
    if config.schedule == "cosine":
        schedule = CosineAnnealingLR(optimizer, T_max=max(1, config.epochs * batches))

    def train_epoch(net: XrayClassifier, generator: Generator) -> Scalars:
        total = torch.zeros((), device=device)
        for rows in shuffled_rows(len(images), config.batch_size, generator, device):
            loss = classifier_loss(net, augmented(to_unit(images[rows]), config.augment), labels[rows])
            descend(optimizer, loss)
            schedule.step()
            total += loss.detach() * len(rows) / len(images)
        return {"loss_plain": total}

    def validate(net: XrayClassifier) -> tuple[float, Scalars]:
        judged = metrics(probabilities(net, val.images.to(device)), val.labels.to(device))
        return judged["accuracy"], {curve: judged[name] for name, curve in CURVES.items()}

    best = fit(
        run,
        net,
        optimizer,
        name="classifier",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        state={"schedule": schedule},
        patience=config.patience + 1,
        above=0.0,
    )
    summary = {"begins_as": config.begins_as, "seed": seed, "images": len(images), "best": best}
    save_network(run.folder / FILE, net, {"training": {**summary, "config": asdict(config)}})
    return best


def classifier_loss(net: XrayClassifier, x: Tensor, labels: Tensor, *, masked: bool = False) -> Tensor:
    """Cross-entropy of images [B, C, H, W] in [0, 1], the mean over them, in nats; `masked`: a mask was applied."""
    with bfloat16_on_cuda(x.device):
        logits = net(x, masked=masked)
    return F.cross_entropy(logits.float(), labels)


def check_classes(labels: Tensor, classes: int, purpose: str) -> None:
    """Check that `labels` int64 [N] are classes 0..classes-1, and of at least two of them.

    Raises:
        ValueError: they are not; names the images' purpose.
    """
    found = torch.unique(labels).tolist()
    if not found or found[0] < 0 or found[-1] >= classes:
        raise ValueError(
            f"the {purpose} images have the labels {found} but the classifier has the classes 0..{classes - 1}; give "
            f"images with such labels, or build it with more classes"
        )
    if len(found) == 1:
        raise ValueError(
            f"all {len(labels)} {purpose} images are of class {found[0]}, from which no classifier can learn, and "
            f"which cannot choose one; give images of at least two classes"
        )

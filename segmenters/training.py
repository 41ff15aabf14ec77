"""Supervised training of a segmenter, and its use on many images (paper: RL4Seg, sections 4 and 5.1).

Labels are 0 background, 1 LV, 2 MYO. A network of one channel is a binary one: logit > 0, or p > 0.5, is label 1.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam, Optimizer

from ..common.checkpoints import load_into, load_weights, save_weights
from ..common.checks import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, check
from ..common.device import bfloat16_on_cuda
from ..common.fitting import Scalars, fit
from ..common.runs import Run
from ..datasets.echo.images import CLASSES, LV, MYO
from ..datasets.images import ImagePool
from .norms import modes_kept
from .unet import UNet

Loss = Literal["ce", "ce_double_softmax"]


@dataclass(frozen=True)
class SupervisedConfig:
    """How a segmenter is trained on labelled images. Defaults: the paper's program, but for the loss."""

    epochs: int = 50
    """Passes over the training images; 0 leaves the network as it is."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
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
    net: UNet, train: ImagePool, val: ImagePool | None, config: SupervisedConfig, run: Run, seed: int
) -> dict[str, float]:
    """Train `net`, which then holds its best epoch, in eval mode; returns that epoch's scalars.

    Args:
        net: is changed; stays on its device.
        train: labelled images.
        val: labelled images of other patients: the best mean Dice of LV and MYO chooses the epoch. None: the last epoch
            is the best, for self-training on gold masks, where no truth may choose.
        config: see there.
        run: the stage: receives `segmenter/loss`, `segmenter/dice`, `segmenter/dice_lv`, `segmenter/dice_myo`.
        seed: of the order of the images, and of dropout.

    Raises:
        ValueError: images without labels, or a loss that is no longer finite.
    """
    device = device_of(net)
    train, val = train.to(device), val and val.to(device)
    truth = truth_of(train, net.out_channels)
    val_truth = truth_of(val, net.out_channels) if val else None
    optimizer = Adam(net.parameters(), lr=config.learning_rate)

    def train_epoch(generator: Generator) -> Scalars:
        total = torch.zeros((), device=device)
        for rows in shuffled_rows(len(train), config.batch_size, generator, device):
            loss = supervised_loss(logits_of(net, train.at(rows)), truth[rows], config)
            descend(optimizer, loss)
            total += loss.detach() * len(rows) / len(train)
        return {"loss": total}

    def validate() -> tuple[float | None, Scalars]:
        if val is None or val_truth is None:
            return None, {}
        scalars = dice_scalars(segment(net, val.images), val_truth)
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
    )


def supervised_loss(logits: Tensor, labels: Tensor, config: SupervisedConfig) -> Tensor:
    """Mean cross-entropy over all pixels. logits float32 [B, K, H, W]; labels [B, H, W], values 0..K-1."""
    scores = logits.softmax(dim=1) if config.loss == "ce_double_softmax" else logits
    return F.cross_entropy(scores, labels.long(), label_smoothing=config.label_smoothing)


# -- use -----------------------------------------------------------------------------------------------------------


def segment(net: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """Labels uint8 [N, H, W], the most probable ones, of images uint8 [N, C, H, W], on the
    device of `images`.

    Eval mode meanwhile, without gradients.

    Raises:
        ValueError: the images are of another type or rank.
    """
    return torch.cat([labels_of(logits).to(images.device) for logits in _logits(net, images, batch_size)])


def probabilities(net: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """Class probabilities float32 [N, K, H, W] of images uint8 [N, C, H, W]; K = 1 for a binary network.

    As `segment`, but 4 K bytes per pixel stay: give large sets in parts.
    """
    return torch.cat([probabilities_of(logits).to(images.device) for logits in _logits(net, images, batch_size)])


def labels_of(logits: Tensor) -> Tensor:
    """The most probable labels uint8 [B, H, W] of logits [B, K, H, W]; 0 where two are equal."""
    return (logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)).to(torch.uint8)


def probabilities_of(logits: Tensor) -> Tensor:
    """softmax, or the logistic function of a single channel; both [B, K, H, W]."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def logits_of(net: nn.Module, x: Tensor) -> Tensor:
    """Logits float32 [B, K, H, W] of x float32 [B, 1, H, W] in [0, 1]; the network in the mode in which it is."""
    with bfloat16_on_cuda(x.device):
        logits: Tensor = net(x)
    return logits.float()


def image_batches(images: Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """x float32 [B, C, H, W] in [0, 1] on `device`, in order, of images uint8 [N, C, H, W].

    As few batches as `batch_size` permits, of nearly equal sizes: none is so small that its statistics say nothing.

    Raises:
        ValueError: the images are of another type or rank, or there is none.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"images are {images.dtype} {list(images.shape)} but must be uint8 [N, C, H, W] with N > 0")
    for part in images.tensor_split(math.ceil(len(images) / batch_size)):
        yield part.to(device).float() / 255


def _logits(net: nn.Module, images: Tensor, batch_size: int) -> Iterator[Tensor]:
    with torch.no_grad(), modes_kept(net):
        net.eval()
        for x in image_batches(images, batch_size, device_of(net)):
            yield logits_of(net, x)


# -- Dice ----------------------------------------------------------------------------------------------------------


def class_dice(a: Tensor, b: Tensor, classes: Sequence[int] = (LV, MYO)) -> Tensor:
    """Dice 2 |A and B| / (|A| + |B|) per image and class, float32 [B, K], of label maps [B, H, W] of any integer type.

    A class that is in neither map gives 1, in one of them 0.

    Raises:
        ValueError: maps of different shapes.
    """
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"label maps are {list(a.shape)} and {list(b.shape)} but must both be [B, H, W]")
    columns = []
    for label in classes:
        in_a, in_b = a == label, b == label
        both, either = (in_a & in_b).sum(dim=(1, 2)), in_a.sum(dim=(1, 2)) + in_b.sum(dim=(1, 2))
        columns.append(torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0))
    return torch.stack(columns, dim=1)


def dice_scalars(labels: Tensor, truth: Tensor) -> dict[str, float]:
    """`dice_lv`, `dice_myo` and their mean `dice`, each a mean over the images."""
    lv, myo = class_dice(labels, truth).mean(dim=0).tolist()
    return {"dice": (lv + myo) / 2, "dice_lv": lv, "dice_myo": myo}


# -- one step ------------------------------------------------------------------------------------------------------


def truth_of(images: ImagePool, classes: int) -> Tensor:
    """Their labels.

    Raises:
        ValueError: no image, no labels, or a label that is none of the classes 0..classes-1.
    """
    if not len(images):
        raise ValueError("there is no image to train with; choose a split that has some")
    if images.labels is None:
        raise ValueError(
            f"{images.ids[0]} and the other images have no labels, which training needs; use a labelled set"
        )
    if (highest := int(images.labels.max())) >= classes:
        raise ValueError(f"labels go up to {highest} but the network has the classes 0..{classes - 1}")
    return images.labels


def shuffled_rows(number: int, batch_size: int, generator: Generator, device: torch.device) -> Sequence[Tensor]:
    """The rows 0..number-1 in random order, in as few batches as `batch_size` permits, of nearly equal sizes.

    Equal, because a last batch of one image of 32 x 32 has one value per map at the lowest level, and no variance.
    """
    order = torch.randperm(number, generator=generator).to(device)
    return order.tensor_split(math.ceil(number / batch_size))


def descend(optimizer: Optimizer, loss: Tensor) -> None:
    """One step down the gradient of `loss`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def device_of(net: nn.Module) -> torch.device:
    """Where the network is."""
    return next(net.parameters()).device


# -- on disk -------------------------------------------------------------------------------------------------------


def save_segmenter(path: Path, net: UNet, metadata: Mapping[str, str]) -> None:
    """Write weights, architecture and `metadata` into one safetensors file."""
    names = ("in_channels", "out_channels", "init_channels", "norm", "dropout")
    unet = json.dumps({name: getattr(net, name) for name in names})
    save_weights(path, net.state_dict(), {**metadata, "unet": unet})


def load_segmenter(path: str | Path, *, in_channels: int = 1, out_channels: int = len(CLASSES)) -> UNet:
    """The network that `save_segmenter` wrote, in eval mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds no U-Net, or one of other channels.
    """
    weights, metadata = load_weights(path)
    try:
        net = UNet(**json.loads(metadata["unet"]))
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} holds no U-Net that can be built ({error!r}); use a file of this package"
        ) from error
    if (net.in_channels, net.out_channels) != (in_channels, out_channels):
        raise ValueError(
            f"{str(path)!r} holds a network of {net.in_channels} -> {net.out_channels} channels but one of "
            f"{in_channels} -> {out_channels} is needed; perhaps it is a critic, a reward network or a binary segmenter"
        )
    load_into(net, weights, str(path))
    return net.eval()

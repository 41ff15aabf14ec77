"""UDAS: self-training of the early features (Sheikh and Schultz, MIDL 2022; docs/rl4seg.md, Method 11).

A small head on the first block learns the segmentation on the source. On the target the network's own final
probabilities then teach that head's output, and only the first block moves: where the domains differ most. Symbols:
h = logits of the head, t = softmax of the network's logits.
"""

import copy
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from ..common.checkpoints import load_into, load_weights, save_weights
from ..common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, SHARE, check
from ..common.device import bfloat16_on_cuda, forked_rng
from ..common.fitting import Scalars, descend, fit, shuffled_rows
from ..common.overlap import class_dice
from ..common.runs import Run
from ..common.workers import ONE_PROCESS, Workers
from ..datasets.images import ImagePool
from .inference import device_of, image_batches, labels_of
from .training import dice_scalars, truth_of
from .unet import UNet

HEAD = "weights.safetensors"
"""File of the head in its stage."""


@dataclass(frozen=True)
class UdasConfig:
    """Training of UDAS. Defaults: the method's own, but for epochs and step size on the target, which are ours."""

    head_epochs: int = 50
    """Passes of the head over the source; the best by validation Dice is kept."""
    head_learning_rate: float = 1e-3
    """Adam learning rate of the head."""
    epochs: int = 50
    """Passes of the first block over the target, at most."""
    learning_rate: float = 1e-4
    """Adam learning rate of the first block; small, because the teacher changes with it."""
    batch_size: int = 20
    """Images per step, at most."""
    tolerance: float = 0.005
    """Stop after an epoch that changes the Dice between head and teacher by less than this; 0 to 1."""

    def __post_init__(self) -> None:
        check(self, "udas.", head_epochs=AT_LEAST_0, head_learning_rate=POSITIVE, batch_size=AT_LEAST_1)
        check(self, "udas.", epochs=AT_LEAST_0, learning_rate=POSITIVE, tolerance=SHARE)


def train_udas(
    net: UNet,
    source: ImagePool,
    val: ImagePool,
    target: ImagePool,
    config: UdasConfig,
    run: Run,
    seed: int,
    *,
    workers: Workers = ONE_PROCESS,
) -> UNet:
    """A copy of `net`, in eval mode, whose first block (batch-normalisation statistics included) fits the target.

    No label of the target is read: the epoch after which the agreement rests is kept.

    Args:
        net: trained on the source, at least two classes; stays as it is.
        source: labelled images.
        val: labelled images of the source's domain, of other patients: they choose the head's epoch.
        target: images; their labels are not read.
        config: see there.
        run: the stage; receives below `head` the scalars `udas_head/loss`, `udas_head/dice*`, and below `early`
            `udas/loss`, `udas/agreement` (Dice between head and teacher) and its `udas/change`. These stages in it
            depend on its settings.
        seed: of the head's weights and of the order of the images.
        workers: the processes that train together.

    Raises:
        ValueError: source images without labels, or a loss that is no longer finite.
    """
    device = device_of(net)
    net = copy.deepcopy(net).eval().requires_grad_(False)
    source, val, target = source.to(device), val.to(device), target.to(device)
    with forked_rng(device):
        torch.manual_seed(seed)
        head = early_head(net).to(device)

    def make(stage: Run) -> list[str]:
        _train_head(net, head, source, val, config, stage, seed, workers)
        if workers.is_main:
            save_weights(stage.folder / HEAD, head.state_dict())
        return [HEAD]

    settings = {"udas": asdict(config), "seed": seed, **run.settings}
    trained = run.stage("head").complete(settings, make, workers=workers)
    load_into(head, load_weights(trained / HEAD)[0], str(trained / HEAD))
    head.eval().requires_grad_(False)
    early = run.stage("early")
    early.depend_on(settings, after=[trained])
    _train_early(net, head, target, config, early, seed, workers)
    return net.requires_grad_(True)


def early_head(net: UNet) -> nn.Sequential:
    """Conv 3x3 to 12, ReLU, conv 3x3 to 8, ReLU, conv 3x3 to the classes of `net`, on its first block's features."""
    return nn.Sequential(
        nn.Conv2d(net.init_channels // 2, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, net.out_channels, 3, padding=1),
    )


def both_logits(net: UNet, head: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """h and the network's own logits, float32 [B, K, H, W] each; only h has a gradient."""
    with bfloat16_on_cuda(x.device):
        first = net.early(x)
        student = head(first)
        with torch.no_grad():
            teacher = net.after_early(first)
    return student.float(), teacher.float()


def self_training_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-sum_c t_c ln softmax(h)_c, the mean over all pixels; t has no gradient. Logits [B, K, H, W]."""
    return F.cross_entropy(student, teacher.detach().softmax(dim=1))


def agreement(net: UNet, head: nn.Module, target: ImagePool, batch_size: int) -> float:
    """Dice between the labels of head and network, the mean over images and foreground classes; both in eval mode."""
    total = torch.zeros((), device=target.images.device)
    with torch.no_grad():
        for x in image_batches(target.images, batch_size, target.images.device):
            student, teacher = (labels_of(logits) for logits in both_logits(net, head, x))
            total += class_dice(student, teacher, range(1, net.out_channels)).mean() * len(x) / len(target)
    return float(total)


def _train_head(
    net: UNet,
    head: nn.Sequential,
    source: ImagePool,
    val: ImagePool,
    config: UdasConfig,
    stage: Run,
    seed: int,
    workers: Workers,
) -> None:
    """Train `head` on the features of the frozen network."""
    device = device_of(net)
    truth, val_truth = truth_of(source, net.out_channels), truth_of(val, net.out_channels)
    optimizer = Adam(head.parameters(), lr=config.head_learning_rate)

    def logits(head: nn.Module, x: Tensor) -> Tensor:
        with bfloat16_on_cuda(device):
            h: Tensor = head(net.early(x))
        return h.float()

    def train_epoch(head: nn.Sequential, generator: Generator) -> Scalars:
        total = torch.zeros((), device=device)
        for rows in shuffled_rows(len(source), config.batch_size, generator, device, workers):
            loss = F.cross_entropy(logits(head, source.at(rows)), truth[rows].long())
            descend(optimizer, loss, workers, len(rows))
            total += loss.detach() * len(rows) / len(source)
        return {"loss": total}

    def validate(head: nn.Sequential) -> tuple[float | None, Scalars]:
        labels = [labels_of(logits(head, x)) for x in image_batches(val.images, config.batch_size, device)]
        scalars = dice_scalars(torch.cat(labels), val_truth, val.classes)
        return scalars["dice"], scalars

    fit(
        stage,
        head,
        optimizer,
        name="udas_head",
        epochs=config.head_epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        workers=workers,
    )


def _train_early(
    net: UNet, head: nn.Module, target: ImagePool, config: UdasConfig, stage: Run, seed: int, workers: Workers
) -> None:
    """Train the first block of `net` until head and teacher agree no better."""
    device = device_of(net)
    net.early.requires_grad_(True)
    optimizer = Adam(net.early.parameters(), lr=config.learning_rate)
    agreed: list[float] = []

    def train_epoch(net: UNet, generator: Generator) -> Scalars:
        net.eval()
        if not agreed:  # before the first epoch, or that of a resumed run
            agreed.append(agreement(net, head, target, config.batch_size))
        net.early.train()  # all that follows stays as the source made it
        total = torch.zeros((), device=device)
        for rows in shuffled_rows(len(target), config.batch_size, generator, device, workers):
            loss = self_training_loss(*both_logits(net, head, target.at(rows)))
            descend(optimizer, loss, workers, len(rows))
            total += loss.detach() * len(rows) / len(target)
        return {"loss": total}

    def validate(net: UNet) -> tuple[float | None, Scalars]:
        agreed.append(agreement(net, head, target, config.batch_size))
        change = agreed[-1] - agreed[-2]
        return None, {"agreement": agreed[-1], "change": change}

    fit(
        stage,
        net,
        optimizer,
        name="udas",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        stop=lambda scalars: abs(scalars["change"]) < config.tolerance,
        workers=workers,
    )

"""The reward network, the probability that a label is right, and its training (docs/rl4seg.md, Method 3 and 5-6).

Symbols: x = image, a = label map, z = logits, r = sigmoid(z) = probability that the label is right, T = temperature,
e = error target 1[a_bad = a_ref].
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..common.checks import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, check, check_choice
from ..common.device import bfloat16_on_cuda
from ..common.fitting import Scalars, descend, fit, shuffled_rows
from ..common.networks import Network
from ..common.runs import Run
from ..common.workers import ONE_PROCESS, Workers
from ..datasets.images import ImagePool
from ..segmenters.unet import LEVELS, Norm, UNet
from .reward_data import Triplets

ActionEncoding = Literal["raw", "onehot"]
Fusion = Literal["min", "lcb"]
TEMPERATURES = (0.01, 100.0)
"""Range of T: perfect logits would ask for 0, useless ones for infinity."""
TEMPERATURE_PIXELS = 2**22
"""Pixels, about, that T is fitted on: far more than one number needs."""
AUROC_BINS = 2048


@dataclass(frozen=True)
class RewardNetConfig:
    """Training of the reward network (docs/rl4seg.md, Method 5).

    Raises:
        ValueError: a value outside its range.
    """

    epochs: int = 50
    """Epochs per iteration of the loop; the best by validation BCE counts."""
    learning_rate: float = 1e-3
    """Adam learning rate."""
    batch_size: int = 64
    """Triplets per step, at most: an epoch's batches are of one size, give or take one."""
    plateau_factor: float = 0.1
    """Factor on the learning rate at a plateau of the validation BCE, above 0 and below 1."""
    plateau_patience: int = 10
    """Epochs in a row without a better validation BCE after which the learning rate stays; one more lowers it
    (PyTorch's ReduceLROnPlateau)."""
    action_encoding: ActionEncoding = "raw"
    """raw: a as one channel of 0, 1, 2, as in the paper's program; onehot: a channel per class, so without an order."""
    levels: int = LEVELS
    """Resolutions of the U-Net, 1 to 6; with fewer it sees less around a pixel, so less of where masks are usually
    wrong (ours)."""
    ranking: float = 0.0
    """Weight of the pairwise ranking loss between good and bad mask; 0: none (ours)."""
    members: int = 1
    """Networks that are trained, which differ in their seed; PPO is given their fused maps (ours)."""
    fusion: Fusion = "min"
    """Of the members' maps at each pixel. min: the least; lcb: mean less lcb_width standard deviations."""
    lcb_width: float = 1.0
    """Standard deviations below the mean, of fusion lcb."""
    early_stop: int | None = None
    """Stop after so many epochs without a better validation BCE; null: never, as in the paper's program."""
    warm_start: bool = False
    """Start from the reward network of the iteration before instead of from scratch."""

    def __post_init__(self) -> None:
        check(self, "reward_net.", epochs=AT_LEAST_0, learning_rate=POSITIVE, batch_size=AT_LEAST_1)
        check(self, "reward_net.", plateau_factor=(ABOVE_0, BELOW_1), plateau_patience=AT_LEAST_0)
        check(self, "reward_net.", early_stop=AT_LEAST_1, levels=(1, LEVELS), ranking=AT_LEAST_0)
        check(self, "reward_net.", members=AT_LEAST_1, lcb_width=AT_LEAST_0)


class RewardNet(Network):
    """A U-Net from an image and its label map to the probability, at each pixel, that the label is right.

    It is made in eval mode, and is used in it: the paper's program never switched, so that the reward of an image
    depended on the others in its batch (docs/rl4seg.md, Method 3). Only `train_reward_net` trains.

    Args:
        classes: number of labels.
        encoding: of the label map: "raw" (2 -> 1 channels) or "onehot" (1 + classes -> 1).
        init_channels: twice the maps of the U-Net's first level.
        norm: normalisation of the U-Net.
        levels: resolutions of the U-Net.
    """

    temperature: Tensor
    """T, float32 []: 1 until it is fitted."""
    _labels: Tensor

    def __init__(
        self,
        *,
        classes: int,
        encoding: ActionEncoding = "raw",
        init_channels: int = 32,
        norm: Norm = "batch",
        levels: int = LEVELS,
    ) -> None:
        super().__init__()
        check_choice("encoding", encoding, get_args(ActionEncoding))
        self.classes, self.encoding, self.init_channels, self.norm = classes, encoding, init_channels, norm
        self.levels = levels
        channels = 2 if encoding == "raw" else 1 + classes
        self.unet = UNet(channels, 1, init_channels=init_channels, norm=norm, levels=levels)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("_labels", torch.arange(classes, dtype=torch.uint8).view(1, -1, 1, 1), persistent=False)
        self.eval()

    def logits(self, images: Tensor, actions: Tensor) -> Tensor:
        """z, float32 [B, H, W], of images float32 [B, 1, H, W] in [0, 1] and actions uint8 [B, H, W]."""
        a = actions[:, None]
        a = a if self.encoding == "raw" else torch.eq(a, self._labels)  # [B, 1 or C, H, W]
        with bfloat16_on_cuda(images.device):
            z: Tensor = self.unet(torch.cat([images, a.to(images.dtype)], dim=1))[:, 0]
        return z.float()

    def forward(self, images: Tensor, actions: Tensor, *, calibrated: bool = False) -> Tensor:
        """r, float32 [B, H, W] in [0, 1]; arguments as for `logits`.

        The reward of PPO is sigmoid(z), T = 1. With `calibrated` it is sigmoid(z / T): 1 minus that is the uncertainty.
        """
        z = self.logits(images, actions)
        return torch.sigmoid(z / self.temperature if calibrated else z)


# -- training ------------------------------------------------------------------------------------------------------


def train_reward_net(
    net: RewardNet,
    triplets: Triplets,
    val: Triplets,
    images: ImagePool,
    config: RewardNetConfig,
    run: Run,
    seed: int,
    *,
    workers: Workers = ONE_PROCESS,
) -> dict[str, float]:
    """Train `net`, which then holds its best weights and the T that fits them; returns the scalars of that epoch.

    Args:
        net: from scratch or warm; it and all tensors on one device.
        triplets: to learn from.
        val: of other patients; they choose the epoch, and T.
        images: the pool that the triplets' rows point into.
        config: see there.
        run: the stage; receives `reward_net/*` per epoch.
        seed: seeds the order of the triplets.
        workers: the processes that train together.

    Raises:
        ValueError: too few triplets, or a loss that is no longer finite.
    """
    if len(triplets) < 2 or not len(val):
        raise ValueError(
            f"the reward network has {len(triplets)} training and {len(val)} validation triplets but needs at least 2 "
            f"and 1; build reward data from more images, or with a better policy"
        )
    optimizer = Adam(net.parameters(), lr=config.learning_rate)
    plateau = ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=config.plateau_factor,
        patience=config.plateau_patience,
        threshold=-1e-4,  # of a negative score: an improvement by less than 1e-4 of the BCE counts as none
    )

    def train_epoch(net: RewardNet, generator: Generator) -> Scalars:
        device = triplets.images.device
        total = torch.zeros((), device=device)
        for rows in shuffled_rows(len(triplets), config.batch_size, generator, device, workers):
            loss = training_loss(net, images, triplets.take(rows), config.ranking)
            descend(optimizer, loss, workers, len(rows))
            total += loss.detach() * len(rows) / len(triplets)
        return {"loss": total}

    def validate(net: RewardNet) -> tuple[float, Scalars]:
        judged = reward_scores(net, val, images, config.batch_size)
        lr = optimizer.param_groups[0]["lr"]
        counts = {"n_triplets": len(triplets), "n_triplets_val": len(val), "lr": lr}
        score = workers.mean({"score": -judged["bce"]})["score"]  # so that all workers lower the learning rate together
        plateau.step(score)
        return score, {**{f"val_{key}": value for key, value in judged.items()}, **counts}

    best = fit(
        run,
        net,
        optimizer,
        name="reward_net",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        state={"plateau": plateau},
        patience=config.early_stop,
        workers=workers,
    )
    net.temperature.fill_(fit_temperature(*_some_pixels(net, val, images, config.batch_size, seed)))
    return {**best, "temperature": float(net.temperature)}


def training_loss(net: RewardNet, images: ImagePool, triplets: Triplets, ranking: float) -> Tensor:
    """BCE of z and e, and `ranking` times the ranking loss: [] (docs/rl4seg.md, Method 6)."""
    if not ranking:
        return F.binary_cross_entropy_with_logits(*error_logits(net, images, triplets))
    x, wrong = images.at(triplets.images), triplets.a_bad != triplets.a_ref
    both = net.logits(torch.cat([x, x]), torch.cat([triplets.a_bad, triplets.a_ref]))  # one batch: one normalisation
    z_bad, z_good = both.chunk(2)
    bce = F.binary_cross_entropy_with_logits(z_bad, (~wrong).float())
    return bce + ranking * ranking_loss(z_good, z_bad, wrong)


def ranking_loss(z_good: Tensor, z_bad: Tensor, wrong: Tensor) -> Tensor:
    """-log sigmoid(mean z_good - mean z_bad), means over an image's wrong pixels, and then over images: [].

    Of one pixel, of which one of two labels is right, this sigmoid is the chance that it is the good one. Images
    without wrong pixel do not count; 0 where none has one.

    Args:
        z_good: logits float32 [B, H, W] of the good masks.
        z_bad: logits float32 [B, H, W] of the bad ones.
        wrong: bool [B, H, W], where they differ.
    """
    size = wrong.sum(dim=(1, 2))
    margin = ((z_good - z_bad) * wrong).sum(dim=(1, 2)) / size.clamp(min=1)
    counts = size > 0
    return (F.softplus(-margin) * counts).sum() / counts.sum().clamp(min=1)


def error_logits(net: RewardNet, images: ImagePool, triplets: Triplets) -> tuple[Tensor, Tensor]:
    """z and e of the bad masks of `triplets` on their images, both float32 [B, H, W]."""
    return net.logits(images.at(triplets.images), triplets.a_bad), (triplets.a_bad == triplets.a_ref).float()


@torch.no_grad()
def reward_scores(net: RewardNet, triplets: Triplets, images: ImagePool, batch_size: int) -> dict[str, float]:
    """ "bce", mean over all pixels, and "auroc", of finding wrong pixels by 1 - r (from a histogram of z).

    The AUROC is 0.5 where all pixels are right, or all wrong.
    """
    device = triplets.images.device
    bce = torch.zeros((), dtype=torch.float64, device=device)
    counts = torch.zeros(2 * AUROC_BINS, dtype=torch.int64, device=device)
    for rows in torch.split(torch.arange(len(triplets), device=device), batch_size):
        z, e = error_logits(net, images, triplets.take(rows))
        bce += F.binary_cross_entropy_with_logits(z, e, reduction="sum").double() / (len(triplets) * e[0].numel())
        bins = ((z.clamp(-12, 12) + 12) / 24 * (AUROC_BINS - 1)).round().long()
        joint = (bins + AUROC_BINS * e.long()).flatten()
        counts.scatter_add_(
            0, joint, torch.ones_like(joint)
        )  # bincount would synchronise with the GPU to know the size
    wrong, right = counts.view(2, AUROC_BINS).double()
    below = wrong.cumsum(0) - wrong / 2  # wrong pixels with a lower z; ties count half
    pairs = wrong.sum() * right.sum()
    auroc = torch.where(pairs > 0, (below * right).sum() / pairs.clamp(min=1), 0.5)
    return dict(zip(("bce", "auroc"), torch.stack([bce, auroc]).tolist(), strict=True))


# -- temperature ---------------------------------------------------------------------------------------------------


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """argmin over T in TEMPERATURES of the mean NLL of sigmoid(z / T); logits and 0/1 targets of one shape.

    The NLL is convex in 1 / T: its derivative E[z (sigmoid(z / T) - e)] has one root, which is bisected. The paper's
    program fitted sigmoid((2z - 1) / T) and then used sigmoid(z / T), so that its T is about twice too large.

    Raises:
        ValueError: shapes that differ, or no pixel.
    """
    if logits.shape != targets.shape or not logits.numel():
        raise ValueError(
            f"logits {list(logits.shape)} and targets {list(targets.shape)} must be of one shape, not empty"
        )
    z, e = logits.double(), targets.double()
    low, high = (torch.tensor(math.log(value), dtype=torch.float64, device=z.device) for value in TEMPERATURES)
    for _ in range(50):
        middle = (low + high) / 2
        too_cold = (z * (torch.sigmoid(z * torch.exp(-middle)) - e)).mean() > 0  # less 1 / T would lower the NLL
        low, high = torch.where(too_cold, middle, low), torch.where(too_cold, high, middle)
    return math.exp(float((low + high) / 2))


@torch.no_grad()
def _some_pixels(
    net: RewardNet, triplets: Triplets, images: ImagePool, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """z and e, [T, K], of the same K random pixels of every triplet."""
    size = triplets.a_ref[0].numel()
    shuffled = torch.randperm(size, generator=Generator().manual_seed(seed))
    pixels = shuffled[: max(TEMPERATURE_PIXELS // len(triplets), 1)].to(triplets.images.device)
    chosen = []
    for rows in torch.split(torch.arange(len(triplets), device=pixels.device), batch_size):
        chosen.append([value.flatten(1)[:, pixels] for value in error_logits(net, images, triplets.take(rows))])
    z, e = (torch.cat(values) for values in zip(*chosen, strict=True))
    return z, e

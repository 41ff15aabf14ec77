"""TI-ST: self-training on predictions that do not change with the image's intensities (Ghamsarian et al., MICCAI 2023).

As the program of RL4Seg uses it (docs/rl4seg.md, Method 11). Symbols: e = epoch from 0; lambda(e) = weight of
the target term; q, p = predictions on a target image and on a jittered copy; m = 1 where both are sure of one class.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from ..common.checks import AT_LEAST_1, POSITIVE, check
from ..common.fitting import Scalars, descend, fit, shuffled_rows, steps_done
from ..common.networks import load_network, save_network
from ..common.overlap import class_dice
from ..common.runs import Run
from ..common.workers import ONE_PROCESS, Workers
from ..datasets.echo.images import CLASSES, LV, MYO
from ..datasets.images import ImagePool
from .inference import device_of, image_batches, logits_of, segment
from .norms import adapt_batchnorm, statistics_kept
from .training import truth_of
from .unet import UNet

SURE = 0.85
"""Least probability of a prediction that counts as certain."""
JITTER = 0.6
"""Brightness and contrast are scaled by 0.4 to 1.6; the saturation of the paper's jitter does nothing to grey."""
BLUR_SIGMA = (0.1, 2.0)
"""Width in pixels of the 5 x 5 Gaussian (torchvision's default; the paper names the 5 x 5 only)."""
SHARPNESS = 1.5
WEIGHTS = "weights.safetensors"
"""File of each network in its stage."""


@dataclass(frozen=True)
class TistConfig:
    """Training of TI-ST. Defaults: the program of RL4Seg."""

    nets: Literal["binary", "multi"] = "binary"
    """binary: one network for LV and one for MYO, merged. multi: one network of three classes."""
    overlap: Literal["lv", "myo"] = "lv"
    """Class of a pixel that both binary networks call foreground (the authors' figures: myo)."""
    epochs: int = 50
    """Passes over the source images; at least 2: the target acts in the second half of them."""
    learning_rate: float = 1e-3
    """Adam learning rate."""
    batch_size: int = 32
    """Images of each domain per step, at most."""

    def __post_init__(self) -> None:
        check(self, "tist.", epochs=(2, math.inf), learning_rate=POSITIVE, batch_size=AT_LEAST_1)  # two halves


class BinaryPair(nn.Module):
    """Two binary networks as one of three classes, whose most probable label is the merged one.

    LV where the LV network says so, MYO where the other does; `overlap` decides where both do.
    """

    def __init__(self, lv: UNet, myo: UNet, overlap: Literal["lv", "myo"]) -> None:
        super().__init__()
        self.lv, self.myo, self.overlap = lv, myo, overlap

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 3, H, W] of images [B, 1, H, W]."""
        lv, myo = self.lv(x)[:, 0], self.myo(x)[:, 0]  # log-odds against "not this class": the background's logit is 0
        if self.overlap == "lv":
            myo = torch.where(lv > 0, myo.clamp(max=0), myo)
        else:
            lv = torch.where(myo > 0, lv.clamp(max=0), lv)
        return torch.stack([torch.zeros_like(lv), lv, myo], dim=1)


def train_tist(
    fresh: Callable[[int], UNet],
    source: ImagePool,
    val: ImagePool,
    target: ImagePool,
    config: TistConfig,
    run: Run,
    seed: int,
    *,
    workers: Workers = ONE_PROCESS,
) -> UNet | BinaryPair:
    """A segmenter of three classes, in eval mode, trained from scratch on the source and, later, on the target too.

    Of the epochs in which the target acts, the one with the best Dice on `val` is kept: no label of the target is read.
    Each forward of training uses the statistics of its own batch. The running ones follow the source, so that `val` is
    judged fairly, and in the end become those of all target images, as the target term saw them; if they followed both
    domains they would fit neither.

    Args:
        fresh: makes an untrained network of one channel in and so many out, the same at each call.
        source: labelled images.
        val: labelled images of the source's domain, of other patients.
        target: images; their labels are not read.
        config: see there.
        run: the stage; below `lv` and `myo`, or `multi`, it receives the scalars `tist/source`, `tist/target` (the two
            terms), `tist/weight` (lambda), `tist/trusted` (share of pixels with m = 1) and `tist/dice` (on `val`).
            These stages in it depend on its settings.
        seed: of order, jitter and dropout.
        workers: the processes that train together.

    Raises:
        ValueError: source images without labels, or a loss that is no longer finite.
    """

    def make(label: int | None, stage: Run) -> list[str]:
        net = fresh(len(CLASSES) if label is None else 1)
        _train_one(net, label, source, val, target, config, stage, seed, workers)
        if workers.is_main:
            save_network(stage.folder / WEIGHTS, net)
        return [WEIGHTS]

    settings = {"tist": asdict(config), "seed": seed, **run.settings}
    for name, label in ({"multi": None} if config.nets == "multi" else {"lv": LV, "myo": MYO}).items():
        run.stage(name).complete(settings, partial(make, label), workers=workers)
    return load_tist(run.folder, config)


def load_tist(folder: Path, config: TistConfig) -> UNet | BinaryPair:
    """The segmenter that `train_tist` with this config left in `folder`, in eval mode, on the CPU."""

    def load(name: str, out: int) -> UNet:
        return load_network(folder / name / WEIGHTS, UNet, in_channels=1, out_channels=out)

    if config.nets == "multi":
        return load("multi", len(CLASSES))
    return BinaryPair(load("lv", 1), load("myo", 1), config.overlap).eval()


def tist_weight(epoch: int, epochs: int = 50) -> float:
    """lambda(e): 0 in the first half of the epochs, then 0.5 exp(-2 (1 - (e - E/2) / (E/2))), up to nearly 0.5."""
    half = epochs / 2
    return 0.5 * math.exp(-2 * (1 - (epoch - half) / half)) if epoch >= half else 0.0


def source_term(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy; of one channel the binary one. logits [B, K, H, W]; labels [B, H, W], 0..K-1, or 0 and 1."""
    return F.cross_entropy(_all_classes(logits), labels.long())


def target_term(jittered: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all pixels of m times the cross-entropy of p with its own most probable class; and the mean of m.

    Logits [B, K, H, W] of the jittered and of the clean images. With one channel it is BCE(p m, 1[p > 0.5] m) as in the
    program: m = 1 where both are above 0.85 or both below 0.15.
    """
    log_p = _all_classes(jittered).log_softmax(dim=1)
    sure_p, label_p = log_p.detach().exp().max(dim=1)
    sure_q, label_q = _all_classes(clean).detach().softmax(dim=1).max(dim=1)
    m = ((label_p == label_q) & (sure_p > SURE) & (sure_q > SURE)).float()
    return -(m * log_p.gather(1, label_p[:, None])[:, 0]).mean(), m.mean()


def cycled_rows(number: int, wanted: int, generator: Generator) -> Tensor:
    """Rows int64 [wanted] of 0..number-1, one random order after another: none comes twice more than another."""
    orders = [torch.randperm(number, generator=generator) for _ in range(math.ceil(wanted / number))]
    return torch.cat(orders)[:wanted]


def _train_one(
    net: UNet,
    label: int | None,
    source: ImagePool,
    val: ImagePool,
    target: ImagePool,
    config: TistConfig,
    stage: Run,
    seed: int,
    workers: Workers,
) -> None:
    """Train `net` for one class against the rest, or (label None) for all."""
    device = device_of(net)
    source, val, target = source.to(device), val.to(device), target.to(device)
    truth, val_truth = (truth_of(images, len(CLASSES)) for images in (source, val))
    if label is not None:
        truth, val_truth = ((labels == label).to(torch.uint8) for labels in (truth, val_truth))
    classes = (LV, MYO) if label is None else (1,)
    updates = math.ceil(len(source) / (config.batch_size * workers.world_size))
    optimizer = Adam(net.parameters(), lr=config.learning_rate)

    def train_epoch(net: UNet, generator: Generator) -> Scalars:
        weight = tist_weight(steps_done(optimizer) // updates, config.epochs)
        sums = torch.zeros(3, device=device)
        cycled = workers.broadcast(cycled_rows(len(target), len(source), generator)).to(device)
        there = [workers.shard(rows) for rows in cycled.tensor_split(updates)]
        here = shuffled_rows(len(source), config.batch_size, generator, device, workers)
        for rows, target_rows in zip(here, there, strict=True):
            loss = first = source_term(logits_of(net, source.at(rows)), truth[rows])
            second = trusted = torch.zeros((), device=device)
            if weight:
                x = target.at(target_rows)
                with statistics_kept(net):
                    with torch.no_grad():
                        clean = logits_of(net, x)
                    second, trusted = target_term(logits_of(net, jitter(x, generator)), clean)
                loss = first + weight * second
            descend(optimizer, loss, workers, len(rows))
            sums += torch.stack([first, second, trusted]).detach() * len(rows) / len(source)
        return dict(zip(("source", "target", "trusted"), sums, strict=True))

    def validate(net: UNet) -> tuple[float, Scalars]:
        dice = float(class_dice(segment(net, val.images), val_truth, classes).mean())
        weight = tist_weight(steps_done(optimizer) // updates - 1, config.epochs)
        score = dice + (weight > 0)  # an epoch without the target is never better than one with it
        return score, {"weight": weight, "dice": dice}

    fit(
        stage,
        net,
        optimizer,
        name="tist",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        workers=workers,
    )
    adapt_batchnorm(net, image_batches(target.images, config.batch_size, device))


def _all_classes(logits: Tensor) -> Tensor:
    """Logits of all classes: a binary network's channel is the log-odds against a background of logit 0."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


# -- jitter --------------------------------------------------------------------------------------------------------


def jitter(x: Tensor, generator: Generator) -> Tensor:
    """x [B, 1, H, W] in [0, 1] with other brightness and contrast, in random order, then blurred or sharpened.

    Each image has its own factors; blur and sharpening are equally frequent, and one of them always happens.
    """
    draw = torch.rand(5, len(x), 1, 1, 1, generator=generator).to(x.device)
    light, contrast = 1 + JITTER * (2 * draw[:2] - 1)
    light_first = adjust_contrast((light * x).clamp(0, 1), contrast)
    x = torch.where(draw[2] < 0.5, light_first, (light * adjust_contrast(x, contrast)).clamp(0, 1))
    sigma = BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * draw[3]
    return torch.where(draw[4] < 0.5, blur(x, sigma), sharpen(x))


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """clip(f x + (1 - f) mean(x)), the mean over each image. x [B, 1, H, W]; factor [B, 1, 1, 1]."""
    return (factor * x + (1 - factor) * x.mean(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """x [B, 1, H, W] under a 5 x 5 Gaussian of sigma [B, 1, 1, 1] pixels, mirrored at the border."""
    along = torch.exp(-0.5 * (torch.arange(-2, 3, device=x.device) / sigma) ** 2)  # [B, 1, 1, 5]
    along = along / along.sum(dim=-1, keepdim=True)
    kernels = along.transpose(-1, -2) * along  # [B, 1, 5, 5]
    rows = F.pad(x, (2, 2, 2, 2), mode="reflect").transpose(0, 1)  # one group per image: all kernels in one call
    return F.conv2d(rows, kernels, groups=len(x)).transpose(0, 1)


def sharpen(x: Tensor) -> Tensor:
    """clip(1.5 x - 0.5 smooth(x)), x [B, 1, H, W]; smooth: 3 x 3 mean of centre weight 5; the border stays."""
    kernel = torch.ones(1, 1, 3, 3, device=x.device)
    kernel[..., 1, 1] = 5
    smooth = x.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(x, kernel / kernel.sum())
    return (SHARPNESS * x + (1 - SHARPNESS) * smooth).clamp(0, 1)

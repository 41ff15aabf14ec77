"""Adaptation to target images without labels: AdaBN and entropy minimisation (docs/rl4seg.md, Method 11).

They and `tist.py` and `udas.py` are what the paper's method is compared with. None reads a label of the target, not
even to choose an epoch: entropy minimisation keeps its last one. Symbols: H(p) = entropy of a pixel's probabilities p.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.optim import Adam

from ..common.checks import AT_LEAST_0, AT_LEAST_1, POSITIVE, check
from ..common.fitting import Scalars, descend, fit, shuffled_rows
from ..common.runs import Run
from ..common.workers import ONE_PROCESS, Workers
from ..datasets.images import ImagePool
from .inference import device_of, image_batches, logits_of
from .norms import adapt_batchnorm, set_norm_mode, statistics_kept
from .unet import UNet


@dataclass(frozen=True)
class EntropyConfig:
    """Minimisation of the entropy of the target's predictions (Wang et al., Tent, ICLR 2021)."""

    epochs: int = 5
    """Passes over the target images; the last one is kept."""
    learning_rate: float = 1e-3
    """Adam learning rate (Tent: 1e-3)."""
    batch_size: int = 32
    """Target images per step, at most; their statistics normalise them."""
    parameters: Literal["norm", "all"] = "norm"
    """norm: gains and biases of the normalisation only, as Tent does. all: every weight, which collapses sooner."""

    def __post_init__(self) -> None:
        check(self, "entropy.", epochs=AT_LEAST_0, learning_rate=POSITIVE, batch_size=AT_LEAST_1)


def adabn(net: UNet, target: ImagePool, *, batch_size: int = 64) -> UNet:
    """A copy of `net`, in eval mode, with the batch-normalisation statistics of all target images."""
    adapted = copy.deepcopy(net).eval()
    adapt_batchnorm(adapted, image_batches(target.images, batch_size, device_of(net)))
    return adapted


def minimise_entropy(
    net: UNet, target: ImagePool, config: EntropyConfig, run: Run, seed: int, *, workers: Workers = ONE_PROCESS
) -> UNet:
    """A copy of `net`, in eval mode, that is more certain on the target: gradient descent on the mean of H(p).

    Batch normalisation uses the batch's statistics in training; at the end of each epoch the running ones become those
    of all target images, so that a mask does not depend on other images. The last epoch is kept.

    Args:
        net: trained on the source; stays as it is.
        target: images; their labels are not read.
        config: see there.
        run: the stage: receives `entropy/loss` (nats per pixel, with the batch's statistics) and `entropy/entropy` (the
            same of the network as it is kept).
        seed: of the order of the images.
        workers: the processes that train together.
    """
    device = device_of(net)
    net, target = copy.deepcopy(net), target.to(device)
    net.requires_grad_(config.parameters == "all")
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            layer.requires_grad_(True)
    optimizer = Adam([p for p in net.parameters() if p.requires_grad], lr=config.learning_rate)

    def train_epoch(net: UNet, generator: Generator) -> Scalars:
        total = torch.zeros((), device=device)
        set_norm_mode(net, net.norm, training=False)  # no dropout: its noise would be taken for uncertainty
        for rows in shuffled_rows(len(target), config.batch_size, generator, device, workers):
            with statistics_kept(net):
                loss = entropy(logits_of(net, target.at(rows))).mean()
            descend(optimizer, loss, workers, len(rows))
            total += loss.detach() * len(rows) / len(target)
        adapt_batchnorm(net, image_batches(target.images, config.batch_size, device))
        return {"loss": total}

    def validate(net: UNet) -> tuple[float | None, Scalars]:
        total = torch.zeros((), device=device)
        for x in image_batches(target.images, config.batch_size, device):
            total += entropy(logits_of(net, x)).mean() * len(x) / len(target)
        return None, {"entropy": total}

    fit(
        run,
        net,
        optimizer,
        name="entropy",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        workers=workers,
    )
    return net.requires_grad_(True)


def entropy(logits: Tensor) -> Tensor:
    """H = -sum_c p_c ln p_c, nats [B, H, W] from 0 to ln K, of logits [B, K, H, W]."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)

"""The shape prior: a variational auto-encoder of masks, and its training (docs/rl4seg.md, Method 8).

Symbols: z = latent code, (mu, logvar) = its posterior, t_k = attribute k of a mask, which z_k is made to grow with.
The prior learns from masks of the source domain only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from ..common.checks import AT_LEAST_0, AT_LEAST_1, BELOW_1, POSITIVE, check
from ..common.device import forked_rng
from ..common.fitting import Scalars, descend, fit, shuffled_rows
from ..common.networks import Network
from ..common.overlap import class_dice
from ..common.runs import Run
from ..common.workers import ONE_PROCESS, Workers
from ..datasets.echo.images import CLASSES, LV, MYO
from .shape_attributes import ATTRIBUTES, attributes

BLOCKS = 4
SHRINK = 2 ** (BLOCKS + 1)
"""Side, in pixels of the image, of one pixel of the bottleneck."""


class ARVAE(Network):
    """Attribute-regularised variational auto-encoder of label maps; 5 194 019 parameters with the defaults.

    Args:
        size: (H, W) of the masks, multiples of 32.
        init_channels: maps of the first level, doubled at each of the next three.
        latent: dimensions of z; at least one per attribute.
    """

    def __init__(self, size: tuple[int, int] = (256, 256), *, init_channels: int = 48, latent: int = 16) -> None:
        super().__init__()
        if any(n < SHRINK or n % SHRINK for n in size):
            raise ValueError(f"size is {size} but both sides must be multiples of {SHRINK}")
        if latent < len(ATTRIBUTES) or init_channels < 1:
            raise ValueError(
                f"latent is {latent} and init_channels {init_channels} but must be at least {len(ATTRIBUTES)} and 1"
            )
        self.size, self.init_channels, self.latent = size, init_channels, latent
        classes, maps = len(CLASSES), [init_channels * 2**block for block in range(BLOCKS)]
        self._bottleneck = (init_channels, size[0] // SHRINK, size[1] // SHRINK)
        flat = math.prod(self._bottleneck)

        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([classes, *maps]):
            layers += _layer(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1))
            layers += _layer(nn.Conv2d(outputs, outputs, 3, padding=1))
        layers += _layer(nn.Conv2d(maps[-1], init_channels, 3, stride=2, padding=1))
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.mu, self.logvar = nn.Linear(flat, latent), nn.Linear(flat, latent)

        layers = []
        for inputs, outputs in pairwise([init_channels, *reversed(maps)]):
            layers += _layer(nn.ConvTranspose2d(inputs, outputs, 2, stride=2))
            layers += _layer(nn.Conv2d(outputs, outputs, 3, padding=1))
        layers += _layer(nn.ConvTranspose2d(init_channels, init_channels, 2, stride=2))
        self.from_code = nn.Sequential(nn.Linear(latent, flat), nn.ELU())
        self.decoder = nn.Sequential(*layers, nn.Conv2d(init_channels, classes, 3, padding=1))

    def encode(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar, [B, latent], of masks uint8 [B, H, W]."""
        features = self.encoder(_onehot(masks))
        return self.mu(features), self.logvar(features)

    def decode(self, z: Tensor) -> Tensor:
        """Logits [B, C, H, W] of codes [B, latent]."""
        logits: Tensor = self.decoder(self.from_code(z).view(len(z), *self._bottleneck))
        return logits

    def masks(self, z: Tensor) -> Tensor:
        """The most likely masks, uint8 [B, H, W], of codes [B, latent]."""
        return self.decode(z).argmax(dim=1).byte()


def _onehot(masks: Tensor) -> Tensor:
    """float32 [B, C, H, W]."""
    return torch.stack([masks == label for label in range(len(CLASSES))], dim=1).float()


def _layer(conv: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [conv, nn.ELU(), nn.BatchNorm2d(conv.out_channels)]


# -- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShapePriorConfig:
    """Training of the shape prior; weights of the loss from docs/rl4seg.md, Method 8, the rest is ours.

    Raises:
        ValueError: a value outside its range.
    """

    epochs: int = 100
    """Epochs; the best by the validation Dice of the reconstruction counts."""
    learning_rate: float = 1e-3
    """Adam learning rate."""
    batch_size: int = 32
    """Masks per step, at most."""
    init_channels: int = 48
    """Maps of the first level."""
    latent: int = 16
    """Dimensions of the code; the first seven follow an attribute each."""
    dice_weight: float = 1.0
    """Weight of 1 - Dice of LV and MYO."""
    ce_weight: float = 0.1
    """Weight of the cross-entropy."""
    kl_weight: float = 1e-4
    """Weight of the divergence of the posterior from N(0, 1)."""
    attribute_weight: float = 10.0
    """Weight of the attribute regularisation."""
    delta: float = 1.0
    """Steepness of the tanh in the attribute regularisation."""
    shift: float = 0.0
    """Augmentation: masks are moved by up to this share of the image along each axis. 0 in the paper's program: a prior
    that has seen the source's positions only calls others wrong, which is what the paper measured."""
    scale: float = 0.0
    """Augmentation: masks grow or shrink by up to this share."""
    rotation_deg: float = 0.0
    """Augmentation: masks turn by up to this angle, in degrees."""

    def __post_init__(self) -> None:
        check(self, "shape_prior.", epochs=AT_LEAST_0, learning_rate=POSITIVE, batch_size=(2, math.inf), delta=POSITIVE)
        check(self, "shape_prior.", init_channels=AT_LEAST_1, latent=(len(ATTRIBUTES), math.inf))
        check(self, "shape_prior.", dice_weight=AT_LEAST_0, ce_weight=AT_LEAST_0, kl_weight=AT_LEAST_0)
        check(self, "shape_prior.", attribute_weight=AT_LEAST_0, rotation_deg=AT_LEAST_0)
        check(self, "shape_prior.", shift=(0, BELOW_1), scale=(0, BELOW_1))


def loss_terms(logits: Tensor, masks: Tensor, mu: Tensor, logvar: Tensor, z: Tensor, delta: float) -> dict[str, Tensor]:
    """The four terms of the loss without their weights, each a scalar.

    dice pools a class over the batch, so that a mask without it does no harm; kl is summed over z, attribute over k.
    """
    probability = logits.softmax(dim=1)
    onehot = _onehot(masks)
    both = (probability * onehot).sum(dim=(0, 2, 3))
    dice = 2 * both / (probability.sum(dim=(0, 2, 3)) + onehot.sum(dim=(0, 2, 3))).clamp(min=1e-6)
    t, codes = attributes(masks), z[:, : len(ATTRIBUTES)]
    pull = torch.tanh(delta * (codes[:, None] - codes[None])) - torch.sign(t[:, None] - t[None])  # [B, B, 7]
    return {
        "dice": 1 - dice[1:].mean(),
        "ce": F.cross_entropy(logits, masks.long()),
        "kl": -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(dim=1).mean(),
        "attribute": pull.abs().mean(dim=(0, 1)).sum(),
    }


def weighted(terms: Mapping[str, Tensor], config: ShapePriorConfig) -> Tensor:
    """The loss: the sum of the terms with their weights."""
    weights = {
        "dice": config.dice_weight,
        "ce": config.ce_weight,
        "kl": config.kl_weight,
        "attribute": config.attribute_weight,
    }
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def train_shape_prior(
    masks: Tensor, val: Tensor, config: ShapePriorConfig, run: Run, seed: int, *, workers: Workers = ONE_PROCESS
) -> ARVAE:
    """The shape prior of some masks, in eval mode, frozen, with the weights that reconstruct `val` best.

    Args:
        masks: uint8 [N, H, W] of the source domain, on the device to train on; sides multiples of 32.
        val: the same, of other patients.
        config: see there.
        run: the stage; receives `shape_prior/*` per epoch.
        seed: seeds weights, order, codes and augmentation.
        workers: the processes that train together.

    Raises:
        ValueError: too few masks, or a loss that is no longer finite.
    """
    if len(masks) < 2 or not len(val):
        raise ValueError(f"the shape prior has {len(masks)} masks and {len(val)} for validation but needs 2 and 1")
    height, width = masks.shape[1:]
    with forked_rng(masks.device):
        torch.manual_seed(seed)
        net = ARVAE((height, width), init_channels=config.init_channels, latent=config.latent).to(masks.device)
    optimizer = Adam(net.parameters(), lr=config.learning_rate)

    def train_epoch(net: ARVAE, generator: Generator) -> Scalars:
        totals: dict[str, Tensor] = {}
        for rows in shuffled_rows(len(masks), config.batch_size, generator, masks.device, workers):
            batch = augment_masks(masks[rows], config, generator)
            mu, logvar = net.encode(batch)
            noise = torch.randn(mu.shape, generator=generator).to(mu.device)
            z = mu + noise * (0.5 * logvar).exp()
            terms = loss_terms(net.decode(z), batch, mu, logvar, z, config.delta)
            loss = weighted(terms, config)
            descend(optimizer, loss, workers, len(rows))
            for name, value in {"loss": loss, **terms}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() * len(rows) / len(masks)
        return totals

    def validate(net: ARVAE) -> tuple[float, Scalars]:
        parts = torch.split(val, config.batch_size)
        dice = torch.cat([class_dice(net.masks(net.encode(part)[0]), part, (LV, MYO)) for part in parts])
        lv, myo = dice.mean(dim=0)
        return float((lv + myo) / 2), {"val_dice_lv": lv, "val_dice_myo": myo}

    fit(
        run,
        net,
        optimizer,
        name="shape_prior",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        workers=workers,
    )
    return net.requires_grad_(False)


def augment_masks(masks: Tensor, config: ShapePriorConfig, generator: Generator) -> Tensor:
    """Masks uint8 [B, H, W], each shifted, scaled and turned as `config` allows; background comes in from outside."""
    if not (config.shift or config.scale or config.rotation_deg):
        return masks
    height, width = masks.shape[1:]
    share = (2 * torch.rand(4, len(masks), generator=generator) - 1).to(masks.device)
    angle, zoom = share[0] * math.radians(config.rotation_deg), 1 / (1 + share[1] * config.scale)
    sin, cos = zoom * angle.sin(), zoom * angle.cos()
    aspect = height / width  # grid coordinates are in half sides, not in pixels
    dx, dy = 2 * config.shift * share[2:]
    turn = torch.stack([cos, sin * aspect, dx, -sin / aspect, cos, dy], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(turn, [len(masks), 1, height, width], align_corners=False)
    return F.grid_sample(masks[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0].byte()

"""Gated attention over feature cells: a classifier of whole volumes, taught by one label of each (docs/spars.md,
Method 12).

Ilse, Tomczak, Welling: Attention-based deep multiple instance learning (2018). Symbols: h_i = features of cell i; a_i =
its attention; s_i = its logit; Z = logit of the volume.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW

from ..common.device import forked_rng
from ..common.fitting import Scalars, descend, fit
from ..common.networks import Network
from ..common.runs import Run
from ..datasets.liver.cases import HU_WINDOW, LiverCase
from ..datasets.liver.lattice import Triple, WindowLattice
from .bags import bag_labels, bag_loss, positive_weight
from .presence_config import PresenceTrainingConfig
from .stem import CELL, CHANNELS, Stem
from .train_presence import SHORT, Metrics, WindowPool, draw_volumes, schedule_of

ATTENTION = 32
"""Hidden units of the attention."""
ONE_CELL: Triple = (CELL, CELL, CELL)


class AttentionNet(Network):
    """Z = Σ_i a_i s_i with s_i = c·h_i + b and a = softmax over i of w·(tanh(V h_i) ⊙ σ(U h_i)); h by `Stem`.

    Args:
        hu_window: HU that the bytes 0 and 255 of a volume stand for.
    """

    def __init__(self, hu_window: tuple[float, float] = HU_WINDOW) -> None:
        super().__init__()
        self.hu_window = hu_window
        features = CHANNELS[-1]
        self.layers = Stem()
        self.content, self.gate = nn.Linear(features, ATTENTION), nn.Linear(features, ATTENTION)
        self.attention, self.classify = nn.Linear(ATTENTION, 1), nn.Linear(features, 1)

    def forward(self, volumes: Tensor, lattice: WindowLattice) -> tuple[Tensor, Tensor]:
        """a and s, [B, L] each, of the cells of volumes [B, 1, X, Y, Z] in [0, 1].

        lattice: whose windows are the cells.
        """
        cells = self.layers.cells(volumes, lattice).flatten(2).movedim(1, 2)  # [B, L, 64]
        gated = torch.tanh(self.content(cells)) * torch.sigmoid(self.gate(cells))
        return self.attention(gated)[..., 0].softmax(dim=1), self.classify(cells)[..., 0]

    def volume_logits(self, volumes: Tensor, lattice: WindowLattice) -> Tensor:
        """Z [B] of volumes [B, 1, X, Y, Z] in [0, 1]."""
        attention, logits = self.forward(volumes, lattice)
        return (attention * logits).sum(dim=1)

    @torch.no_grad()
    def cell_map(self, image: Tensor, lattice: WindowLattice) -> Tensor:
        """σ(s_i) a_i / max a of every cell of a volume uint8 [X, Y, Z], float32 [L] in [0, 1]; in eval mode."""
        attention, logits = self.forward(image[None, None].float() / 255, lattice)
        return (logits.sigmoid() * attention / attention.amax())[0]


def train_attention(
    train_cases: Sequence[LiverCase],
    val_cases: Sequence[LiverCase],
    window_size: Triple,
    config: PresenceTrainingConfig,
    run: Run,
    device: torch.device,
    seed: int,
    *,
    metrics: Metrics,
    hu_window: tuple[float, float] = HU_WINDOW,
) -> AttentionNet:
    """The network with the lowest loss of the validation volumes, in eval mode.

    Batches, steps, optimiser and augmentation are those of the presence classifier with batch=dense, and the loss is
    that of its bags by patient; only the label of the whole volume is read.

    Args:
        train_cases: labelled cases of one shape, with and without tumours.
        val_cases: the same, of other patients.
        window_size: of the presence classifier, in voxels; no window is looked at.
        config: see there; network, batch and supervision are as said above.
        run: the stage: receives scalars `attention/*` (x axis: epochs) and checkpoints.
        device: where it is computed.
        seed: of weights, cases and augmentation.
        metrics: computes what is watched; handed in, because `evaluation` stands above this package.
        hu_window: HU that the bytes 0 and 255 of the cases stand for.

    Raises:
        ValueError: cases that cannot be learned from, or a loss that is no longer finite.
    """
    config = replace(config, network="dense", batch="dense", supervision="patient")
    train = WindowPool(train_cases, window_size, config.min_tumour_voxels, device)
    val = WindowPool(val_cases, window_size, config.min_tumour_voxels, device)
    with forked_rng(device):
        torch.manual_seed(seed)
        net = AttentionNet(hu_window).to(device)
    optimizer = AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = schedule_of(optimizer, config)
    lattice = WindowLattice(train.full, ONE_CELL, CELL)
    of_train, of_val = (bag_labels(pool.tumours, lattice, config) for pool in (train, val))
    weight = positive_weight(of_train, "training", "patient")
    positive_weight(of_val, "validation", "patient")

    def train_epoch(net: AttentionNet, generator: Generator) -> Scalars:
        total = torch.zeros((), device=device)
        for _ in range(config.batches_per_epoch):
            volumes, tumours, cells = draw_volumes(hu_window, train, ONE_CELL, CELL, config, generator)
            loss = bag_loss(net.volume_logits(volumes, cells), bag_labels(tumours, cells, config), weight)
            descend(optimizer, loss)
            schedule.step()
            total += loss.detach() / config.batches_per_epoch
        return {"loss": total}

    def validate(net: AttentionNet) -> tuple[float, Scalars]:
        logits = torch.cat([net.volume_logits(image[None, None].float() / 255, lattice) for image in val.images])
        loss = float(bag_loss(logits, of_val, weight))
        judged = {SHORT.get(name, name): value for name, value in metrics(logits.sigmoid(), of_val).items()}
        return -loss, {"loss_val": loss, **judged}

    fit(
        run,
        net,
        optimizer,
        name="attention",
        epochs=config.epochs,
        seed=seed,
        train_epoch=train_epoch,
        validate=validate,
        state={"schedule": schedule},
    )
    return net

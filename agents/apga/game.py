"""What agent and classifier do to each other in one batch (docs/apga.md, Method 13 and 17).

Symbols: x = images [B, 1, S, S] in [0, 1]; y = labels; θ = classifier; φ = the agent's logits [B, 1, h, w]; a = mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from ...attacks.victim import frozen
from ...classifiers.masked_images import enlarge, erased, fill_of, kept
from ...classifiers.xray import XrayClassifier
from ...common.device import bfloat16_on_cuda
from ...common.fitting import descend
from ...datasets.xray.augmentation import augmented
from ...datasets.xray.images import XrayPool
from ...rewards.loss_gap import VIEWS, doubt, gap, reward_terms
from ...segmenters.grid_network import GridNetwork
from ...segmenters.unet11 import UNet11
from .config import APGAExperiment
from .updates import MovingMean, entropy

Agent = GridNetwork | UNet11


class Players(nn.Module):
    """The classifier, and the agent where there is one, which train in one loop."""

    def __init__(self, classifier: XrayClassifier, agent: Agent | None) -> None:
        super().__init__()
        self.classifier, self.agent = classifier, agent


@dataclass(eq=False)
class Batch:
    """Images of one step."""

    rows: Tensor
    """int64 [B], of the pool."""
    x: Tensor
    y: Tensor
    fill: Tensor | None
    """What stands where an image is erased; None: 0."""
    logits: Tensor | None = None
    """φ, with its graph, where there is an agent."""
    values: Tensor | None = None
    """V [B] with its graph, of an agent that has a value."""
    plain: Tensor | None = None
    """Doubts of the classifier in the whole images [B], as the reward compares them, once they are known."""


class Counters:
    """How many images the classifier learned from (`passes`), and was asked about for rewards (`queries`)."""

    def __init__(self) -> None:
        self.passes = self.queries = self.epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state)


class Game:
    """The two networks, their optimiser and the images, and what one of them does to the other.

    One Adam moves both: a step moves the one that its loss has a gradient in.

    Args:
        players: are changed.
        optimizer: of their parameters.
        pool: training images on their device.
        experiment: reward, update and training.
        start: the classifier as it was before the loop, frozen, where the method looks at it.
    """

    def __init__(
        self,
        players: Players,
        optimizer: Adam,
        pool: XrayPool,
        experiment: APGAExperiment,
        start: XrayClassifier | None = None,
    ) -> None:
        self.players, self.optimizer, self.pool = players, optimizer, pool
        self.experiment, self.start = experiment, start
        self.counters, self.mean = Counters(), MovingMean()
        self.known: Tensor | None = None
        self.last_plain_loss: Tensor | None = None
        """Loss of the last step on plain images, which the program compares with."""
        self.forget()

    def forget(self) -> None:
        """Begin the sums of an epoch anew."""
        self.sums, self.batches = dict[str, Tensor](), dict[str, int]()
        self.number = 0
        self.first_bad = torch.full((), -1, device=self.pool.labels.device)

    @property
    def agent(self) -> Agent:
        """The agent; there is one wherever it is asked for."""
        assert self.players.agent is not None
        return self.players.agent

    @property
    def size(self) -> int:
        """S."""
        return self.pool.images.shape[-1]

    def add(self, name: str, value: Tensor) -> None:
        """Count a scalar of this batch in the epoch's mean."""
        value = value.detach()
        self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.batches[name] = self.batches.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """Means over the batches of the epoch."""
        return {name: value / self.batches[name] for name, value in self.sums.items()}

    def batch(self, rows: Tensor) -> Batch:
        """The images of these rows, with the agent's logits."""
        training = self.experiment.training
        x = augmented(self.pool.at(rows), training.augment)
        batch = Batch(rows, x, self.pool.labels[rows], fill_of(x, training.fill))
        if self.players.agent is not None:
            batch.logits, batch.values = look(self.agent, x)
            self.add("apga/mask_entropy", entropy(batch.logits).mean())
        if self.known is not None:
            batch.plain = self.known[rows]
        self.number += 1
        return batch

    # -- rewards ---------------------------------------------------------------------------------------------------

    def remember_plain(self) -> None:
        """Compute the doubts in all whole images once: the classifier is frozen, and images are not turned."""
        if self.experiment.training.augment == "none":
            rows = torch.arange(len(self.pool), device=self.pool.labels.device)
            with torch.no_grad(), frozen(self.players.classifier):
                parts = [self._doubt(self.pool.at(part), self.pool.labels[part]) for part in torch.split(rows, 256)]
            self.known = torch.cat(parts)

    def worth(self, batch: Batch, masks: Tensor) -> Tensor:
        """r of masks [K, B, 1, h, w], [K, B]: differentiable in the masks, with θ in evaluation mode and frozen."""
        config, number = self.experiment.reward, len(masks)
        with frozen(self.players.classifier):
            if batch.plain is None:
                with torch.no_grad():
                    batch.plain = self._doubt(batch.x, batch.y)
            self.add("apga/loss_orig", batch.plain.mean())
            flat, y = masks.flatten(0, 1), batch.y.repeat(number)
            x = batch.x.repeat(number, 1, 1, 1)
            fill = None if batch.fill is None else batch.fill.repeat(number, 1, 1, 1)
            doubts, large = {"plain": batch.plain.repeat(number)}, enlarge(flat, self.size)
            for view in VIEWS[config.mode]:
                doubts[view] = self._doubt((erased if view == "adv" else kept)(x, large, fill), y, masked=True)
                self.add(f"apga/loss_{view}", doubts[view].mean())
        worth = gap(doubts, config.mode)
        self.add("apga/gap", worth.mean())
        terms = reward_terms(worth, flat, config.clip)
        self.add("apga/mask_area", -terms["area"].mean())
        worth = terms["gap"] + config.area_coef * terms["area"] + config.tv_coef * terms["tv"]
        self.add("apga/reward", worth.mean())
        self._watch(worth)
        return worth.view(number, -1)

    @torch.no_grad()
    def rewards(self, batch: Batch, masks: Tensor) -> Tensor:
        """r of masks [K, B, 1, h, w], [K, B], without gradient; of level batch each is the mean over the batch."""
        worth = self.worth(batch, masks)
        if self.experiment.reward.level == "batch":
            worth = worth.mean(dim=1, keepdim=True).expand_as(worth)
        return worth

    def _doubt(self, x: Tensor, y: Tensor, *, masked: bool = False) -> Tensor:
        self.counters.queries += len(x)
        with bfloat16_on_cuda(x.device):
            logits = self.players.classifier(x, masked=masked)
        return doubt(logits.float(), y, self.experiment.reward.kind)

    def _watch(self, rewards: Tensor) -> None:
        """Note the first batch with a reward that is not finite; nothing waits for the device."""
        bad = ~rewards.detach().isfinite().all() & (self.first_bad < 0)
        self.first_bad = torch.where(bad, self.number - 1, self.first_bad)

    # -- learning --------------------------------------------------------------------------------------------------

    def learn(self, loss: Tensor) -> None:
        """One step of the agent down `loss`; of the classifier too, where it has a gradient in it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if (most := self.experiment.update.max_grad_norm) is not None:
            clip_grad_norm_(self.agent.parameters(), most)
        self.optimizer.step()

    def teach(self, views: Sequence[tuple[str, Tensor]], y: Tensor) -> None:
        """One step of the classifier on the mean loss of these views of a batch.

        Args:
            views: each a name, "plain" or another one of masked images, and images [B, 1, S, S].
            y: labels [B] of each view.
        """
        net = self.players.classifier
        with bfloat16_on_cuda(y.device):
            if net.split_bn:
                logits = torch.cat([net(x, masked=name != "plain") for name, x in views])
            else:
                logits = net(torch.cat([x for _, x in views]))
        losses = (
            F.cross_entropy(logits.float(), y.repeat(len(views)), reduction="none").view(len(views), -1).mean(dim=1)
        )
        descend(self.optimizer, losses.mean())
        self.counters.passes += len(views) * len(y)
        for (name, _), loss in zip(views, losses, strict=True):
            self.add(f"loss_{name}", loss)
            if name == "plain":
                self.last_plain_loss = loss.detach()


def look(agent: Agent, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """φ [B, 1, h, w] of images, and V [B] of an agent that has a value; float32, of one pass."""
    with bfloat16_on_cuda(x.device):
        if isinstance(agent, GridNetwork):
            logits, values = agent.logits_and_values(x)
            return logits.float(), values.float()
        return agent(x).float(), None

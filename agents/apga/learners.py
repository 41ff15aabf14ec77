"""How the agent learns from one batch: each learner draws masks, asks what they are worth, and takes its steps.

Eq. n.m are those of docs/apga.md, Method n: 15 (legacy, reinforce, arm, disarm, relaxed, end2end) and 16 (ppo).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...classifiers.masked_images import enlarge, erased, kept
from ...classifiers.train_xray import classifier_loss
from ..dense_ppo.loss import Ratio, log_ratio, surrogate
from .game import Batch, Game, look
from .updates import (
    along,
    antithetic,
    arm,
    disarm,
    draw,
    leave_one_out,
    legacy_loss,
    log_prob,
    normalised,
    regulariser,
    reinforce_loss,
    relaxed,
    soft_mask_loss,
    threshold,
)

Learner = Callable[[Game, Batch], None]


def legacy(game: Game, batch: Batch) -> None:
    """The released program: its mask is no sample, its reward one number of the batch.

    The loss of the whole images is that of the step before, in training mode; the classifier has moved since.
    """
    logits, before = _logits(batch), game.last_plain_loss
    assert before is not None
    mask = threshold(logits.detach())
    game.rewards(batch, mask[None])  # for the curves
    with torch.no_grad():
        net = game.players.classifier
        net.eval()
        without = erased(batch.x, enlarge(mask, game.size), batch.fill)
        loss = classifier_loss(net, without, batch.y, masked=True)
        net.train()
    game.counters.queries += len(batch.y)
    reward = loss - before
    advantage = reward - game.mean.take(reward)
    _note(game, game.mean.value, advantage.abs())
    game.learn(legacy_loss(logits, mask, advantage))


def reinforce(game: Game, batch: Batch) -> None:
    """REINFORCE with K masks of each image (Eq. 15.3)."""
    logits, update = _logits(batch), game.experiment.update
    masks = draw(logits, update.samples)
    rewards = game.rewards(batch, masks)
    if update.baseline == "leave_one_out":
        advantage = leave_one_out(rewards)
        _note(game, rewards.mean(), advantage.std(correction=0))
    else:
        baseline = game.mean.before(rewards.mean())
        advantage = rewards - baseline
        _note(game, baseline, advantage.std(correction=0))
    game.learn(reinforce_loss(logits, masks, normalised(advantage)) + _terms(game, logits))


def pairs(game: Game, batch: Batch, *, integrated: bool) -> None:
    """ARM or, with u integrated out, DisARM: pairs of opposite masks (Eq. 15.5, 15.6)."""
    logits, number = _logits(batch), max(1, game.experiment.update.samples // 2)
    u = torch.rand(number, *logits.shape, device=logits.device)
    z, other = antithetic(logits.detach(), u)
    rewards, others = game.rewards(batch, torch.cat([z, other])).chunk(2)
    scale = torch.stack([rewards, others]).std(correction=0) + 1e-8
    first, second = rewards / scale, others / scale
    gradient = disarm(first, second, z, other, logits.detach()) if integrated else arm(first, second, u)
    _note(game, rewards.mean(), scale)
    game.learn(along(logits, gradient) + _terms(game, logits))


def relaxed_masks(game: Game, batch: Batch) -> None:
    """The reward's own gradient through the classifier, at a soft mask (Eq. 15.7)."""
    logits = _logits(batch)
    worth = game.worth(batch, relaxed(logits, game.experiment.update.temperature)[None])
    game.learn(-worth.mean() + _terms(game, logits))


def end2end(game: Game, batch: Batch) -> None:
    """The program's soft masks, which agent and classifier learn from together (Eq. 15.8)."""
    logits, (zeros, ones) = _logits(batch), game.experiment.update.end2end
    soft = kept(batch.x, enlarge(logits.sigmoid(), game.size), batch.fill)
    loss = classifier_loss(game.players.classifier, soft, batch.y, masked=True)
    game.add("loss_soft", loss)
    game.add("apga/mask_area", logits.sigmoid().mean())
    game.counters.passes += len(batch.y)
    game.learn(soft_mask_loss(loss, logits, zeros, ones))


def ppo(game: Game, batch: Batch) -> None:
    """PPO on the masks of one batch, a rollout of one step (docs/apga.md, Method 16).

    The baseline is the agent's value; the mean of the image's other masks where it has none.
    """
    update, (logits, values) = game.experiment.update, (_logits(batch), batch.values)
    ratio = update.ratio or "factored"
    of_change: Ratio = "sum" if ratio == "sum" else "factored"
    masks = draw(logits, update.samples)
    rewards, old = game.rewards(batch, masks), _maps(log_prob(logits.detach(), masks))
    advantage = leave_one_out(rewards) if values is None else rewards - values.detach()
    _note(game, rewards.mean() if values is None else values.mean(), advantage.std(correction=0))
    advantage = normalised(advantage - advantage.mean()).flatten()[:, None, None]
    for n in range(update.n_epochs):
        if n:
            logits, values = look(game.agent, batch.x)
        now = _maps(log_prob(logits, masks))
        change = log_ratio(now.detach(), old, of_change)
        if n and bool((change.exp() - 1 - change).mean() > update.target_kl):  # waits for the device, as SB3 does
            break
        loss = -surrogate(now, old, advantage, update.clip_range, ratio).mean() + _terms(game, logits)
        if values is not None:
            loss = loss + update.vf_coef * F.mse_loss(values.expand_as(rewards), rewards)
        game.learn(loss)


LEARNERS: dict[str, Learner] = {
    "legacy": legacy,
    "reinforce": reinforce,
    "arm": lambda game, batch: pairs(game, batch, integrated=False),
    "disarm": lambda game, batch: pairs(game, batch, integrated=True),
    "relaxed": relaxed_masks,
    "end2end": end2end,
    "ppo": ppo,
}


def _maps(masks: Tensor) -> Tensor:
    """[K, B, 1, h, w] as [K B, h, w]."""
    return masks.flatten(0, 2)


def _logits(batch: Batch) -> Tensor:
    assert batch.logits is not None
    return batch.logits


def _terms(game: Game, logits: Tensor) -> Tensor:
    update = game.experiment.update
    return regulariser(logits, update.zeros_coef, update.ones_coef, update.ent_coef)


def _note(game: Game, baseline: Tensor | None, deviation: Tensor) -> None:
    assert baseline is not None
    game.add("apga/baseline", baseline)
    game.add("apga/advantage_std", deviation)

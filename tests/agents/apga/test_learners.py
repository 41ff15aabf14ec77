"""The steps of each learner, with masks that are given, against losses that are written out here."""

import pytest
import torch
import torch.nn.functional as F
from joint_toys import Table, toy
from segarena.agents.apga import learners
from segarena.agents.apga.methods import METHODS

PHI = torch.tensor([[1.0, -1], [0.5, -2]])[None, None]
MASKS = torch.tensor([[0.0, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 0, 1]])
MASKS = MASKS.view(4, 1, 1, 2, 2).expand(4, 8, 1, 2, 2)
CLASSES = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
"""Of the images: rewards differ between them."""
EARLIER = 0.4
"""Mean reward of the batch before."""


def learned(monkeypatch, method, **settings):
    """Losses of the steps with a batch, logits [4] that each begins with, and the rewards [4, 8] of `MASKS`."""
    game, _ = toy(method, agent=Table(PHI), **{"max_grad_norm": None, **settings})
    game.mean.take(torch.tensor(EARLIER))
    monkeypatch.setattr(learners, "draw", lambda logits, number: MASKS)
    losses, logits, learn = [], [], game.learn

    def noted(loss):
        losses.append(float(loss.detach()))
        logits.append(game.agent.logits.detach().flatten().clone())
        learn(loss)

    monkeypatch.setattr(game, "learn", noted)
    batch = game.batch(torch.arange(8))
    batch.y = CLASSES
    METHODS[method].learner(game, batch)
    return losses, logits, game.rewards(batch, MASKS)


def without_the_others(rewards):
    """Each reward less the mean of the image's three others."""
    return rewards - (rewards.sum(dim=0) - rewards) / 3


def log_p(logits):
    """Of each cell of `MASKS`, [4, 8, 4]."""
    a = MASKS.flatten(2)
    return a * F.logsigmoid(logits) + (1 - a) * F.logsigmoid(-logits)


def quotients(after, before, ratio):
    """[4, 8, 4], by its definition."""
    change = log_p(after) - log_p(before)
    if ratio == "factored":
        return change.exp()
    of_masks = change.sum(dim=2, keepdim=True) / (4 if ratio == "mean" else 1)
    return of_masks.exp().expand_as(change)


@pytest.mark.parametrize("ratio", ["sum", "mean", "factored"])
def test_ppo_descends_its_clipped_loss(monkeypatch, ratio):
    losses, (before, after), rewards = learned(
        monkeypatch, "ppo", ratio=ratio, n_epochs=2, target_kl=1e3, rate=0.6, clip_range=0.1
    )
    q = quotients(after, before, ratio)
    assert (q - 1).abs().max() > 0.1, "some are clipped"
    advantage = without_the_others(rewards)
    advantage = (advantage / advantage.std(correction=0))[..., None]
    expected = -torch.min(advantage * q, advantage * q.clamp(0.9, 1.1)).mean()
    assert losses == pytest.approx([0.0, float(expected)], abs=1e-5)


def test_ppo_leaves_a_batch_by_the_divergence_of_masks_or_of_cells(monkeypatch):
    for ratio in ("sum", "mean", "factored"):
        settings = {"ratio": ratio, "n_epochs": 2, "rate": 0.6}
        _, (before, after), _ = learned(monkeypatch, "ppo", target_kl=1e3, **settings)
        change = log_p(after) - log_p(before)
        change = change.sum(dim=2) if ratio == "sum" else change
        found = float((change.exp() - 1 - change).mean())
        for share, steps in ((1.01, 2), (0.99, 1)):
            assert len(learned(monkeypatch, "ppo", target_kl=share * found, **settings)[0]) == steps, (ratio, share)


@pytest.mark.parametrize("baseline", ["leave_one_out", "ema"])
def test_reinforce_descends_the_loss_of_its_advantages(monkeypatch, baseline):
    losses, (logits,), rewards = learned(
        monkeypatch, "reinforce", baseline=baseline, zeros_coef=0.3, ones_coef=0.2, ent_coef=0.1
    )
    advantage = without_the_others(rewards) if baseline == "leave_one_out" else rewards - EARLIER
    advantage = advantage / advantage.std(correction=0)
    p = logits.sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    terms = -0.3 * (1 - p).log() - 0.2 * p.log() - 0.1 * entropy
    assert losses == pytest.approx([float(terms.mean() - (advantage[..., None] * log_p(logits)).mean())], abs=1e-5)


@pytest.mark.parametrize("method", ["arm", "disarm", "relaxed"])
def test_the_price_of_cells_reaches_every_learner(monkeypatch, method):
    torch.manual_seed(0)
    (plain,), _, _ = learned(monkeypatch, method)
    torch.manual_seed(0)
    (priced,), _, _ = learned(monkeypatch, method, zeros_coef=0.3)
    assert priced - plain == pytest.approx(0.3 * float(F.softplus(PHI).mean()), abs=1e-5)


def test_end_to_end_weighs_zeros_first(monkeypatch):
    (loss,), _, _ = learned(monkeypatch, "end2end", end2end=(0.5, 0.6))
    (alone,), _, _ = learned(monkeypatch, "end2end", end2end=(0.0, 0.0))
    assert loss - alone == pytest.approx(float(0.5 * F.softplus(PHI).mean() + 0.6 * F.softplus(-PHI).mean()), abs=1e-5)


def test_the_program_is_rewarded_for_what_erasing_its_mask_does():
    game, row = toy("legacy", agent=Table(PHI), max_grad_norm=None)
    game.last_plain_loss = torch.tensor(0.201413)
    row.learner(game, game.batch(torch.arange(8)))  # cells 0 and 2 of logit 1.5: 2 is lost
    assert float(game.mean.value) == pytest.approx(float(F.softplus(torch.tensor(0.5))) - 0.201413, abs=1e-5)
    assert game.counters.queries == 3 * 8, "whole and erased for the curves, erased for the reward"


def test_the_agents_gradient_is_cut():
    for most, expected in ((None, 4.0), (0.5, 0.5)):
        game, _ = toy("reinforce", agent=Table(PHI), max_grad_norm=most)
        game.optimizer = torch.optim.SGD(game.agent.parameters(), lr=1.0)
        game.learn(4 * game.agent.logits[0, 0, 0, 0])
        assert float((game.agent.logits.detach() - PHI).norm()) == pytest.approx(expected, abs=1e-4)

"""Trainings that are played as episodes of SEAT's inner environment, against plain loops (docs/seat.md, Method 18)."""

import copy

import pytest
import torch
from patch_toys import EPS, HALF, STOP, all_of, begun, pool, saved_plan, small
from segarena.agents.papers import POLICIES
from segarena.agents.policy import play
from segarena.attacks.budget import LinfBall, image_range
from segarena.envs.seat_attack import LOSSES
from torch import nn

RULES = POLICIES["SEATAttack-MSD-v0"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return saved_plan(tmp_path_factory.mktemp("plan"))


def plain_ball(images):
    return LinfBall.around(images, EPS, image_range(images))


def plain_pass(net, images, labels):
    """Mean loss over the images, and the gradient of each one's own; the weights' gradients are added."""
    leaf = images.detach().requires_grad_()
    losses = LOSSES["dice_ce"](net(leaf), labels)
    (losses.sum() / len(leaf)).backward()
    return losses.detach(), leaf.grad * len(leaf)


def plain_adam(net):
    return torch.optim.Adam(net.parameters(), 1e-3, amsgrad=True, weight_decay=1e-5)


@pytest.mark.parametrize("iterations", [1, 3])
def test_free_training_by_episodes_is_a_plain_loop_bit_for_bit(plan, iterations):
    """Three batches of m passes, each of which teaches, with the noise of the batch before."""
    env = begun(plan, update_victim="every_step", start="carry", iterations=iterations)
    policy, net = RULES["free"].policy(env, 0), small().train()
    adam, delta = plain_adam(net), None
    for batch in range(3):
        if batch:
            env.reset()
        ball, labels = plain_ball(env.replays.images), env.replays.labels
        x = ball.project(ball.images + (0 if delta is None else delta))
        for _ in range(iterations):
            adam.zero_grad()
            losses, gradient = plain_pass(net, x, labels)
            adam.step()
            x = ball.project(x + 0.5 * ball.radius * gradient.sign())
        delta = x - ball.images
        played = play(env, policy)
        assert played.lengths.tolist() == [iterations] * 4
        assert env.info()["n_fwd"].tolist() == [iterations] * 4
        assert torch.equal(env.now["loss"], losses)
        assert torch.equal(env.replays.delta, delta)
        for mine, other in zip(env.victim.parameters(), net.parameters(), strict=True):
            assert torch.equal(mine, other)
    assert env.learner.updates == 3 * iterations
    assert delta.abs().amax() > 0


@pytest.mark.parametrize("horizon", [3, 10])
def test_pgd_training_by_episodes_is_a_plain_loop_bit_for_bit(plan, horizon):
    """k steps with the weights as they are, then one of the optimiser; the last step does what a stop does."""
    env = begun(plan, update_victim="at_end", start="uniform", iterations=3, horizon=horizon)
    net = small().train()
    adam, policy = plain_adam(net), RULES["pgd"].policy(env, 0)
    for batch in range(2):
        if batch:
            env.reset()
        ball, labels, x = plain_ball(env.replays.images), env.replays.labels, env.replays.adversarial
        assert ((x - ball.images).abs() > 0.01 * ball.radius).any(), "a random start"
        for _ in range(3):
            _, gradient = plain_pass(net, x, labels)
            x = ball.project(x + 0.25 * ball.radius * gradient.sign())
        adam.zero_grad()
        LOSSES["dice_ce"](net(x), labels).mean().backward()
        adam.step()
        played = play(env, policy)
        assert played.terminated.all()
        assert played.lengths.tolist() == [min(horizon, 4)] * 4
        assert env.info()["n_fwd"].tolist() == [4] * 4
        assert torch.equal(env.replays.adversarial, x)
        for mine, other in zip(env.victim.parameters(), net.parameters(), strict=True):
            assert torch.equal(mine, other)
    assert env.learner.updates == 2


def test_the_last_step_teaches_the_last_pass_of_free_training_too(plan):
    """K_max steps are K_max + 1 passes and updates."""
    env = begun(plan, update_victim="every_step", start="carry", horizon=2, iterations=1)
    for expected in (1, 3):
        _, terminated, truncated = env.step(all_of(env, HALF))
        assert env.learner.updates == expected
    assert terminated.all(), "time is observed: what follows a cut is worth nothing"
    assert not truncated.any()
    assert torch.equal(env.carried, env.replays.delta)
    ball, adversarial = env.replays.ball, env.replays.adversarial
    assert torch.equal(adversarial, ball.project(adversarial)), "moved once more, within the ball"


def test_attacks_that_end_apart_teach_what_each_has_reached(plan):
    """at_end: where the weights have changed since a patch was passed, it is passed again before it teaches."""
    env = begun(plan, 2, update_victim="at_end", horizon=2, volumes=pool(2))
    env.reset(options={"index": [0, 1]})
    env.advance(torch.tensor([HALF, STOP]))  # the second teaches and begins anew
    env.step(torch.tensor([HALF, HALF]))  # the first is cut and teaches; the second goes on
    before = [parameter.clone() for parameter in env.victim.parameters()]
    net = copy.deepcopy(env.victim)
    env.step(torch.tensor([STOP, STOP]))  # the second teaches alone, by the weights of now
    LOSSES["dice_ce"](net(env.replays.adversarial[1:]), env.replays.labels[1:]).mean().backward()
    assert env.learner.updates == 3
    for mine, other, old in zip(env.victim.parameters(), net.parameters(), before, strict=True):
        moved = mine - old
        assert ((moved * other.grad)[other.grad.abs() > 1e-3] < 0).float().mean() > 0.7, "down its own gradient, mostly"
    assert env.info()["n_fwd"].tolist() == [3, 3], "one more than the two of the second's attack"


@pytest.mark.parametrize("update", ["never", "every_step", "at_end"])
def test_who_gives_a_module_keeps_it_as_it_was(plan, update):
    net = nn.Sequential(nn.Dropout3d(0.5), small(), nn.BatchNorm3d(2)).train()
    before = copy.deepcopy(net.state_dict())
    env = begun(plan, model=net, update_victim=update, horizon=3)
    torch.manual_seed(1)
    drawn = torch.get_rng_state()
    for action in (HALF, HALF, STOP):
        env.advance(all_of(env, action))
    assert torch.equal(torch.get_rng_state(), drawn), "dropout draws nothing"
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    learned = any(not torch.equal(value, before[name]) for name, value in env.victim.state_dict().items())
    assert learned == (update != "never")
    env.seed(range(4))
    assert all(torch.equal(value, before[name]) for name, value in env.victim.state_dict().items()), "as at first"

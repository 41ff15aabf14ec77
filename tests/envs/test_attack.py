"""The environments of RP-PGD: scripted attacks are their functions (docs/rp-pgd.md, Method 20)."""

import math

import numpy as np
import pytest
import torch
from attack_games import RULES, begun, made
from attack_toys import trained
from segarena.agents.policy import play
from segarena.attacks.budget import LinfBall
from segarena.attacks.methods import ATTACKS


@pytest.mark.parametrize("rand_start", [False, True])
@pytest.mark.parametrize("steps", [3, 11])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_the_same_as_its_function(name, steps, rand_start, monkeypatch):
    row = RULES[name]
    settings = {"horizons": (steps,), **row.settings}
    env = begun(rand_start=rand_start, **settings)
    start, images, labels = env.core.adversarial, env.core.images, env.core.labels
    assert torch.equal(start, images) != rand_start
    with torch.no_grad():  # learners step like this
        play(env, row.policy(env, 0))
    monkeypatch.setattr(LinfBall, "random", lambda ball, generator=None: start)
    direct = ATTACKS[name](
        trained(),
        images,
        labels,
        eps=0.08,
        steps=env.config.horizon,
        random_start=rand_start,
        feature_layer="features",
    )
    assert torch.equal(env.x_adv, direct)
    assert env.core.forwards.tolist() == [env.config.horizon + 1] * 4
    assert env.core.backwards.tolist() == [env.config.horizon] * 4


def plainly(name, images, labels, steps, eps):
    """An attack line by line, without anything of the package but the victim."""
    net, valid = trained(), labels != 255
    targets = torch.where(valid, labels, 0)
    x, region = images.clone(), None
    for t in range(1, steps + 1):
        x = x.detach().requires_grad_()
        logits = net(x)
        wrong = logits.argmax(dim=1) != targets
        region = torch.where(wrong, 2, 1) if region is None else torch.where((region == 1) & wrong, 3, region)
        loss = -logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
        p = logits.detach().softmax(dim=1)
        total = 0.0
        for n in range(len(x)):
            of = valid[n]
            if name == "segpgd":
                share = (t - 1) / (2 * steps)
                total = total + (torch.where(wrong[n], share, 1 - share) * loss[n])[of].sum() / of.sum()
            elif name == "cospgd":
                sure = p[n].gather(0, targets[n][None])[0] / p[n].norm(dim=0)
                total = total + (sure * loss[n])[of].sum() / of.sum()
            else:
                shares = {1: 1 - t / (2 * steps), 3: (t - 1) / (2 * steps), 2: 1 / (2 * steps)}
                for number, share in shares.items():
                    inside = of & (region[n] == number)
                    if inside.any():
                        size = of.sum() if name == "rp_global" else inside.sum()
                        total = total + share * loss[n][inside].sum() / size
        (gradient,) = torch.autograd.grad(total, x)
        moved = x.detach() + eps / steps * gradient.sign()
        x = torch.minimum(torch.maximum(moved, images - eps), images + eps).clamp(0, 1)
    return x


@pytest.mark.parametrize("name", ["segpgd", "cospgd", "rp_region", "rp_global"])
def test_an_episode_is_the_attack_written_out(name):
    env = begun(horizons=(3,))
    images, labels = env.core.images, env.core.labels
    play(env, RULES[name].policy(env, 0))
    expected = plainly(name, images, labels, 3, 0.08)
    assert torch.isclose(env.x_adv, expected, atol=1e-6).float().mean() >= 0.999
    with torch.no_grad():
        there, here = (trained()(x).argmax(dim=1) for x in (env.x_adv, expected))
    assert (there == here).float().mean() >= 0.99


@pytest.mark.parametrize("name", ["segpgd", "rp_pgd_pp"])
def test_actions_of_single_precision_are_nearly_the_function(name):
    env = begun(horizons=(5,))
    table = env.script(name)
    images, labels = env.core.images, env.core.labels
    for _ in range(5):
        env.step(env.actions_from(env.scripted(table).numpy().astype(np.float32)))
    direct = ATTACKS[name](trained(), images, labels, eps=0.08, steps=5, feature_layer="features")
    assert (env.x_adv == direct).float().mean() > 0.999


def test_an_action_of_zeros_is_the_script_it_is_added_to():
    residual, plain = (begun(residual_to=name, horizons=(3,)) for name in ("segpgd", None))
    table = plain.script("segpgd")
    for _ in range(3):
        residual.step(torch.zeros(4, 11))
        plain.step(plain.scripted(table))
    assert torch.equal(residual.x_adv, plain.x_adv)
    moved = begun(residual_to="segpgd", horizons=(3,))
    moved.step(torch.tensor([[0.0] * 7 + [0.5] + [0.0] * 3] * 4))
    assert torch.allclose(moved.info()["alpha"], torch.tensor(0.08 * 10 ** (math.log10(1 / 3) + 0.25)))


def test_a_choice_of_a_script_is_its_step():
    chosen, plain = begun(action_mode="discrete"), begun()
    number = chosen.scripts.index("cospgd")
    assert "fgsm" not in chosen.scripts
    assert {"rp_pgd", "pgd", "mi_fgsm"} <= set(chosen.scripts)
    for _ in range(3):
        chosen.step(torch.full((4,), number))
        plain.step(plain.scripted(plain.script("cospgd")))
    assert torch.equal(chosen.x_adv, plain.x_adv)
    assert not {"rp_pgd", "rp_pgd_pp"} & set(made(action_mode="discrete", feature_layer=None).scripts)


def test_a_grid_multiplies_the_weights_of_a_script():
    even, plain, left = begun(action_mode="gridweight", cells=4), begun(), begun(action_mode="gridweight", cells=4)
    even.step(torch.zeros(4, 4, 4))
    plain.step(plain.scripted(plain.script("segpgd")))
    assert torch.equal(even.x_adv, plain.x_adv)
    grid = torch.full((4, 4, 4), 0.3)
    grid[:, :, 2:] = -1
    left.step(grid)
    assert not torch.equal(left.core.gradient, even.core.gradient)
    share = [(env.core.gradient.abs()[..., 8:].sum() / env.core.gradient.abs().sum()).item() for env in (even, left)]
    assert share[1] < 0.7 * share[0], "the right half weighs less"


def test_a_sign_map_moves_cells_without_any_gradient():
    env = begun(action_mode="signmap", cells=2, step_size=0.02)
    directions = torch.tensor([0, 1, 2, 2, 1, 1, 1, 0])  # two channels of four cells
    env.step(directions.repeat(4, 1))
    moved = (env.x_adv - env.core.images)[0]
    inside = (env.core.images[0] > 0.03) & (env.core.images[0] < 0.97)
    for cell, (channel, y, x) in enumerate(np.ndindex(2, 2, 2)):
        place = (channel, slice(8 * y, 8 * y + 8), slice(8 * x, 8 * x + 8))
        expected = 0.02 * (directions[cell] - 1)
        assert torch.allclose(moved[place][inside[place]], expected, atol=1e-6)
    assert env.info()["n_bwd"].tolist() == [0] * 4
    assert env.info()["n_fwd"].tolist() == [2] * 4
    assert torch.allclose(env.info()["alpha"], torch.tensor(0.02))
    env.reset(torch.tensor([1]))
    env.step(directions.repeat(4, 1))

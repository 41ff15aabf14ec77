"""The environments of RP-PGD (docs/rp-pgd.md, Method 19 to 22)."""

import gc
import math

import numpy as np
import pytest
import torch
from attack_toys import scene, small_victim, trained
from segarena.agents.papers import POLICIES
from segarena.agents.policy import TrainedPolicy, play
from segarena.agents.ppo import Learner
from segarena.attacks.budget import LinfBall
from segarena.attacks.methods import ATTACKS
from segarena.attacks.prototypes import inter_class, intra_class
from segarena.attacks.regions import BOUNDARY, FALSE, IGNORED, TRUE
from segarena.datasets.images import ImagePool
from segarena.datasets.scenes.images import PhantomScenes
from segarena.envs.adapters import SingleEnv
from segarena.envs.attack import AttackEnv
from segarena.envs.attack_actions import NUMBERS, RANGES, decode, encode
from segarena.envs.attack_tasks import CityscapesAttackEnv, LiverAttackEnv, VOCAttackEnv
from segarena.envs.learner_env import LearnerEnv
from segarena.testing import check_env_contract
from torch import nn

CLASSES = ("ground", "one", "two")
RULES = POLICIES["RPPGD-VOC-v0"]


def pool(number=6, side=16, ignored=(), **changes):
    images, labels = scene(number, side=side)
    labels[:, 0] = 255
    for row in ignored:
        labels[row] = 255
    fields = {
        "images": (255 * images).round().to(torch.uint8),
        "labels": labels.to(torch.uint8),
        "ids": [f"scene_{n}" for n in range(number)],
        "groups": [f"scene_{n}" for n in range(number)],
        "tags": {},
        "spacing_mm": torch.full((number, 2), math.nan, dtype=torch.float64),
        "classes": CLASSES,
        "origin": "phantom",
    }
    return ImagePool(**{**fields, **changes})


def made(num_envs=4, **settings):
    settings = {"model": trained(), "images": pool(), "feature_layer": "features", "eps": 0.08, **settings}
    return AttackEnv(num_envs=num_envs, device="cpu", **settings)


def begun(num_envs=4, seed=0, **settings):
    env = made(num_envs, **settings)
    env.seed(range(seed, seed + num_envs))
    env.reset()
    return env


def action(**numbers):
    """The action of PGD with some numbers changed."""
    plain = {**dict.fromkeys(NUMBERS, 0.0), **dict.fromkeys(NUMBERS[:5], 1.0), "step_size": 0.5}
    return encode([{**plain, **numbers}[name] for name in NUMBERS])


def actions(env, **numbers):
    return torch.tensor([action(**numbers)] * env.num_envs)


# -- scripted attacks ----------------------------------------------------------------------------------------------


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


# -- the eleven numbers --------------------------------------------------------------------------------------------


def test_numbers_are_decoded_as_the_table_says():
    found = decode(torch.tensor([[-1.0] * 11, [0.0] * 11, [1.0] * 11]))
    assert found[0].tolist() == pytest.approx([0] * 5 + [0, -1, 0.01, 0, 0, 0])
    assert found[1].tolist() == pytest.approx([0.5] * 5 + [0.5, 0, 0.1, 0.5, 1, 0.5])
    assert found[2].tolist() == pytest.approx([1] * 5 + [1, 1, 1, 1, 2, 1])
    assert found.dtype == torch.float64
    for row in found.tolist():
        assert decode(torch.tensor([encode(row)], dtype=torch.float64))[0].tolist() == pytest.approx(row)
    assert all(low <= x <= high for row in found.tolist() for x, (low, high) in zip(row, RANGES.values(), strict=True))


def test_a_number_without_an_action_is_refused():
    with pytest.raises(ValueError, match=r"the step has step_size 0.001 but an action has it in \[0.01, 1\]"):
        action(step_size=0.001)
    with pytest.raises(ValueError, match=r"PGD, step 0 of 3, has step_size 0.00125 but an action"):
        made(step_size=0.0001, residual_to="pgd")


CHANGED = {
    **dict.fromkeys(NUMBERS[:5], 0.1),
    "inter": 1.0,
    "intra": -1.0,
    "step_size": 0.2,
    "region_mean": 1.0,
    "confidence": 2.0,
    "momentum": 1.0,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_each_number_moves_the_image(name):
    """From a random start far out every group has pixels after a step back and forth."""
    changed = []
    for numbers in ({}, {name: CHANGED[name]}):
        env = begun(6, eps=0.3, horizons=(9,), rand_start=True)
        env.step(actions(env, step_size=0.5))
        env.core.observe(torch.cat([env.core.images[:3], env.core.adversarial[3:]]))
        seen = {number for one in env.info()["region_frac"] for number in one.nonzero().flatten().tolist()}
        assert seen == {0, 1, 2, 3, 4}
        env.step(actions(env, **numbers))
        changed.append((env.core.gradient, env.core.adversarial))
    assert not torch.equal(changed[0][1], changed[1][1])
    if name not in ("step_size", "momentum"):
        assert not torch.allclose(changed[0][0], changed[1][0], rtol=1e-3)


def test_no_weight_leaves_the_image_as_it_is():
    env = begun(horizons=(3,))
    for _ in range(3):
        reward, terminated, _ = env.step(actions(env, **dict.fromkeys(NUMBERS[:5], 0.0), step_size=1.0))
        assert reward.tolist() == [0.0] * 4
    assert terminated.all()
    assert torch.equal(env.x_adv, env.core.images)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_prototype_terms_rise_and_fall_by_their_weight(sign):
    env = begun(horizons=(3,), eps=0.02)
    options, none = env.core.options, dict.fromkeys(NUMBERS[:5], 0.0)

    def value(term):
        protos = env.core.class_prototypes()
        one = inter_class(protos) if term == "inter" else intra_class(protos, options.intra_skip)
        return one.detach()

    before = value("intra")
    env.step(actions(env, **none, intra=sign, step_size=0.01))
    assert ((value("intra") - before) * sign > 0).all()
    assert torch.allclose(env.info()["loss/intra"], sign * before)
    before = value("inter")
    env.step(actions(env, **none, inter=1.0, step_size=0.01))
    assert (value("inter") - before > 0).all()


# -- reward, end, budget -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["miou", "acc", "dice", "p_y"])
def test_the_return_is_the_damage(reward):
    env = begun(8, reward=reward, horizons=(3,))
    before = env.now[reward]
    played = play(env, RULES["segpgd"].policy(env, 0))
    found = env.worth[reward]
    assert torch.allclose(played.returns.float(), before - found, atol=1e-6)
    assert torch.allclose(played.returns.float(), torch.tensor([info["damage"] for info in played.infos]), atol=1e-6)
    assert played.terminated.all()
    assert played.returns.mean() > 0.1, "an attack does damage"


def test_rewards_are_falls_of_the_measure(monkeypatch):
    """.80, .70, .65 give .10 and .05; a paired damage of .12 is taken off the last."""
    values = iter([0.8, 0.7, 0.65])
    env = made(1, horizons=(2,), paired_baseline="pgd")
    monkeypatch.setattr(env._paired, "damage", lambda *_: torch.tensor([0.12]))
    names = ("miou", "acc", "dice", "p_y")
    monkeypatch.setattr("segarena.envs.attack.measures", lambda _: dict.fromkeys(names, torch.tensor([next(values)])))
    env.seed([0])
    env.reset()
    first, _, _ = env.step(actions(env))
    last, terminated, _ = env.step(actions(env))
    assert first.item() == pytest.approx(0.10)
    assert last.item() == pytest.approx(0.05 - 0.12)
    assert env.reward_terms["damage"].item() == pytest.approx(0.05)
    assert terminated.item()


@pytest.mark.parametrize("settings", [{}, {"rand_start": True}, {"best_iterate": True}])
def test_an_attack_gains_nothing_on_itself(settings):
    env = begun(6, paired_baseline="segpgd", horizons=(2, 4), **settings)
    for _ in range(2):
        played = play(env, RULES["segpgd"].policy(env, 0))
        assert played.returns.abs().max() < 1e-6
        env.reset()


def test_a_stronger_attack_gains_more_than_chance():
    returns = {}
    for name in ("pgd", "random"):
        env = begun(16, images=pool(16), horizons=(5,))
        returns[name] = play(env, RULES[name].policy(env, 0)).returns.mean().item()
    assert returns["pgd"] > returns["random"] + 0.05
    assert returns["pgd"] > 0.2


def test_ppo_learns_to_do_more_damage_than_pgd():
    """In 3840 steps, in other episodes; a reward of the other sign would end at 0."""

    def damage_of(policy_of):
        env = begun(64, seed=1000, images=pool(64), horizons=(3,), eps=0.05)
        return play(env, policy_of(env)).returns.mean().item()

    env = LearnerEnv(made(32, images=pool(64), horizons=(3,), eps=0.05))
    model = Learner(
        "MlpPolicy",
        env,
        seed=0,
        device="cpu",
        n_steps=12,
        batch_size=96,
        n_epochs=10,
        gamma=1.0,
        ent_coef=0.0,
        learning_rate=1e-3,
        policy_kwargs={"log_std_init": -0.7},
    )
    before = damage_of(lambda env: TrainedPolicy(model.policy, deterministic=True))
    plain = damage_of(lambda env: RULES["pgd"].policy(env, 0))
    model.learn(3840)
    after = damage_of(lambda env: TrainedPolicy(model.policy, deterministic=True))
    assert before < plain < after - 0.02


def test_the_best_image_counts_where_that_is_chosen():
    """A strong step, and steps in which only the prototypes weigh: the first one's image stays the best."""
    env, last = begun(best_iterate=True, horizons=(4,)), begun(horizons=(4,))
    total = torch.zeros(4)
    lowest = env.now["miou"]
    for t in range(4):
        numbers = {"step_size": 0.6} if t % 2 == 0 else {**dict.fromkeys(NUMBERS[:5], 0.0), "intra": 1.0}
        reward, _, _ = env.step(actions(env, **numbers))
        last.step(actions(last, **numbers))
        assert (reward >= 0).all()
        total, lowest = total + reward, torch.minimum(lowest, env.now["miou"])
    assert torch.allclose(env.worth["miou"], lowest)
    assert torch.allclose(total, env.begun_at - lowest, atol=1e-6)
    assert (env.worth["miou"] <= last.worth["miou"]).all()
    assert not torch.equal(env.x_adv, last.x_adv)


def test_an_episode_ends_after_its_own_steps_or_with_nothing_right():
    env = begun(12, horizons=(2, 3, 5))
    wanted = env.steps.clone()
    assert len(set(wanted.tolist())) == 3
    played = play(env, lambda env: actions(env, **dict.fromkeys(NUMBERS[:5], 0.0)))
    assert played.lengths.tolist() == wanted.tolist()


class Dark(nn.Module):
    """Class 1 where the first channel is bright, else class 0."""

    def forward(self, x):
        return torch.cat([0.5 - x[:, :1], x[:, :1] - 0.5], dim=1)


def test_an_episode_ends_where_nothing_is_right_any_more():
    images = pool(2)
    images.images[:] = 40
    images.labels[:] = 0
    env = begun(2, model=Dark(), images=images, feature_layer=None, eps=0.9, horizons=(7,))
    _, terminated, _ = env.step(torch.tensor([action(step_size=0.1), action(step_size=1.0)]))
    assert terminated.tolist() == [False, True]
    assert env.info()["aacc"].tolist() == [1.0, 0.0]


def test_a_probe_costs_a_second_backward_pass():
    env = begun(3, obs_mode="map", obs_grad="probe", map_size=16, horizons=(2, 4))
    steps = env.steps.tolist()
    plain = env.core.probe()
    assert torch.equal(env.shown_gradient(), plain)
    played = play(env, RULES["segpgd"].policy(env, 0))
    assert [info["n_bwd"] for info in played.infos] == [2 * n for n in steps]
    assert [info["n_fwd"] for info in played.infos] == [n + 1 for n in steps]
    with pytest.raises(ValueError, match="obs_grad is 'probe' but obs_mode='summary'"):
        made(obs_grad="probe")
    with pytest.raises(ValueError, match="obs_grad is 'probe' but action_mode='signmap'"):
        made(obs_grad="probe", obs_mode="map", action_mode="signmap")


@pytest.mark.parametrize("mode", ["schedule", "gridweight", "discrete", "signmap"])
def test_invariants_of_any_actions(mode):
    env = begun(4, action_mode=mode, horizons=(6,), rand_start=True, images=pool(4, ignored=[1]))
    policy = RULES["random"].policy(env, 3)
    env.reset(options={"index": [0, 1, 2, 3]})
    before = env.core.regions
    for _ in range(6):
        env.step(policy(env))
        now, x = env.core.regions, env.core.adversarial
        assert (x - env.core.images).abs().max() <= 0.08 + 1e-6
        assert x.min() >= 0
        assert x.max() <= 1
        assert not ((now == TRUE) & (before != TRUE)).any()
        assert not ((now != BOUNDARY) & (before == BOUNDARY)).any()
        assert torch.equal(now == FALSE, before == FALSE)
        assert torch.equal(now == IGNORED, env.core.labels == 255)
        seen = env.observe()
        assert seen.isfinite().all()
        before = now
    assert torch.equal(env.x_adv[1], env.core.images[1]), "nothing is valid there"
    info = env.episode_info(torch.arange(4))[1]
    assert info["damage"] == 0
    assert info["final_miou"] == info["final_aacc"] == 1


# -- observations --------------------------------------------------------------------------------------------------


def test_the_summary_says_how_the_attack_stands():
    env = begun(horizons=(4,))
    start = env.observe()
    valid = env.core.valid.flatten(1).sum(dim=1)
    right = (env.core.right & env.core.valid).flatten(1).sum(dim=1)
    assert torch.allclose(start[:, :3], torch.tensor([0, 2 / 7, 255 * 0.08 / 16]))
    assert torch.allclose(start[:, 3], right / valid)
    assert torch.allclose(start[:, 3:8].sum(dim=1), torch.ones(4))
    assert not start[:, 4:6].any(), "nothing has changed yet"
    assert torch.allclose(start[:, 21], env.core.accuracy())
    assert torch.allclose(start[:, 22], env.now["miou"])
    assert not start[:, 23:26].any()
    assert (start[:, 26] > 0.3).all(), "classes with a prototype"
    assert not start[:, 29:31].any()
    assert not start[:, 32:].any()
    env.step(actions(env, step_size=1.0, region_mean=0.25, boundary_wrong=0.5))
    after = env.observe()
    assert torch.allclose(after[:, 0], torch.tensor(0.25))
    group = (env.core.regions == BOUNDARY).flatten(1)
    loss = env.core.losses.flatten(1)
    expected = (loss * group).sum(dim=1) / group.sum(dim=1).clamp(min=1) / 5
    assert torch.allclose(after[:, 9], expected.clamp(max=2), atol=1e-5)
    assert torch.allclose(after[:, 23], env.begun_at - env.now["miou"])
    assert torch.allclose(after[:, 24] - after[:, 25], start[:, 21] - after[:, 21], atol=1e-6)
    assert (after[:, 30] > 0.5).all(), "at the edge of the ball"
    assert torch.allclose(after[:, 33:], torch.tensor([3, 0.25, 0, 0, 1, 0.75, 1]), atol=1e-5)
    sign = env.core.gradient.sign()
    env.step(actions(env))
    cosine = torch.nn.functional.cosine_similarity(sign.flatten(1), env.core.gradient.sign().flatten(1))
    assert torch.allclose(env.observe()[:, 32], cosine, atol=1e-5)


def test_without_features_the_prototypes_are_not_seen():
    env = begun(feature_layer=None)
    env.step(actions(env, inter=1.0))
    assert not env.observe()[:, 26:29].any()
    assert not env.info()["loss/inter"].any()


def test_maps_show_where():
    env = begun(obs_mode="map", map_size=16, horizons=(3,))
    seen = env.observe()
    assert seen["map"].shape == (4, 3 * 2 + 8, 16, 16)
    assert torch.allclose(seen["map"][:, :2], env.core.images)
    assert not seen["map"][:, 2:6].any()
    env.step(actions(env, step_size=0.5))
    maps = env.observe()["map"]
    assert torch.allclose(maps[:, 2:4], (env.core.adversarial - env.core.images) / 0.08, atol=1e-6)
    assert torch.allclose(maps[:, 4:6], env.core.gradient.sign())
    chance = env.core.logits.softmax(dim=1).gather(1, env.core.targets[:, None])[:, 0] * env.core.valid
    assert torch.allclose(maps[:, 6], chance, atol=1e-6)
    for channel, where in ((9, TRUE), (10, BOUNDARY), (11, FALSE)):
        assert torch.equal(maps[:, channel] > 0, env.core.regions == where)
    assert torch.equal(maps[:, 12] > 0, env.core.right & env.core.valid)
    assert torch.equal(maps[:, 13] > 0, env.core.valid)
    assert ((maps[:, 8] >= 0) & (maps[:, 8] <= 1)).all()


# -- episodes ------------------------------------------------------------------------------------------------------


def test_images_and_horizons_are_drawn_evenly_and_can_be_chosen():
    env = begun(600, images=pool(3), horizons=(1, 4), model=small_victim(2, 3))
    assert torch.bincount(env.index).min() > 150
    assert 230 < (env.steps == 1).sum() < 370
    env.reset(options={"index": 2})
    assert (env.index == 2).all()
    for bad in ("one", [1, 2], 3, -1):
        with pytest.raises(ValueError, match="index"):
            env.reset(options={"index": bad})
    with pytest.raises(ValueError, match="unknown reset options"):
        env.reset(options={"image": 1})


def test_long_episodes_start_at_random_and_short_ones_do_not():
    env = begun(12, horizons=(3, 10))
    moved = (env.core.adversarial != env.core.images).flatten(1).any(dim=1)
    assert torch.equal(moved, env.steps == 10)
    assert moved.any()
    noise = ((env.core.adversarial - env.core.images) / 0.08)[moved]
    assert noise.abs().max() <= 1 + 1e-5
    assert noise.std() > 0.4
    assert not torch.equal(noise[0], noise[1])


def test_the_final_image_can_be_had():
    env = SingleEnv(made(1, horizons=(1,), expose_x_adv=True))
    env.reset(seed=0)
    info = env.step(np.array(action(), np.float32))[4]
    assert np.array_equal(info["x_adv"], env.batched.x_adv[0].numpy())
    assert info["sample_id"].startswith("scene_")
    assert info["linf"] == pytest.approx(0.04, abs=1e-5)
    held = begun(2, horizons=(1,))
    held.step(actions(held))
    x_adv = held.x_adv
    kept = x_adv.clone()
    held.reset()
    assert torch.equal(x_adv, kept), "who holds it keeps it"


def test_nan_is_named_by_image_and_stops():
    """Of one image, as soon as it is changed."""
    images = pool(4)
    every = images.at(torch.arange(4))

    class Nowhere(nn.Module):
        def forward(self, x):
            return trained()(x) / 0

    class Breaks(nn.Module):
        def forward(self, x):
            row = torch.cdist(x.detach().flatten(1), every.flatten(1)).argmin(dim=1)
            moved = (x != every[row]).flatten(1).any(dim=1)
            return torch.where(((row == 2) & moved).view(-1, 1, 1, 1), torch.nan, trained()(x))

    with pytest.raises(ValueError, match=r"gradients of scene_[0-3](, scene_[0-3])* are not finite after 0 step"):
        begun(model=Nowhere(), images=images, feature_layer=None)
    for stop in ("advance", "episode_info"):
        env = begun(model=Breaks(), images=images, feature_layer=None, horizons=(5,))
        env.reset(options={"index": [0, 2, 1, 3]})
        if stop == "episode_info":
            assert env.step(actions(env))[1].tolist() == [False, True, False, False]
        with pytest.raises(ValueError, match=r"logits or gradients of scene_2 are not finite after 1 step"):
            env.advance(actions(env)) if stop == "advance" else env.episode_info(torch.tensor([1]))


def test_memory_stays_flat():
    env = begun(3, horizons=(2, 3), model=small_victim(2, 3))
    policy = RULES["random"].policy(env, 0)

    def tensors():
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    counts = []
    for number in range(240):
        env.advance(policy(env))
        if number % 80 == 79:
            counts.append(tensors())
    assert max(counts) - min(counts) < 30, counts
    assert len(env.core._leaves) <= 4


def test_the_victim_is_left_as_it_was():
    net = small_victim(2, 3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    env = begun(2, model=net)
    env.step(actions(env))
    assert net.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"obs_mode": "map", "obs_grad": "probe", "map_size": 8, "residual_to": "segpgd", "best_iterate": True},
        {"action_mode": "gridweight", "cells": 2, "rand_start": True, "paired_baseline": "pgd"},
        {"action_mode": "discrete", "reward": "p_y", "loss": "jensen_shannon", "paired_baseline": "js"},
        {"action_mode": "signmap", "cells": 2, "expose_x_adv": True},
    ],
    ids=str,
)
def test_every_kind_of_game_keeps_the_contract(settings):
    victim = {"model": small_victim(2, 3), "images": pool(), "feature_layer": "features"}
    check_env_contract(AttackEnv, steps=24, horizons=(2, 4), **victim, **settings)


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"eps": 8}, "eps is 8 but must be above 0"),
        ({"horizons": ()}, "horizons is empty"),
        ({"horizons": (0,)}, r"horizons is \(0,\) but each must be at least 1"),
        ({"residual_to": "sgd"}, "residual_to is 'sgd' but must be one of"),
        ({"residual_to": "js"}, "Jensen-Shannon raises jensen_shannon but loss is 'cross_entropy'"),
        ({"residual_to": "pgd", "action_mode": "discrete"}, "has no numbers to add to"),
        ({"residual_to": "fgsm"}, "steps is 3 but FGSM has one step"),
        ({"residual_to": "rp_pgd", "feature_layer": None}, "rp_pgd needs prototypes: give feature_layer"),
        ({"feature_layer": "auto"}, "no feature_layer is known of a TinyNet"),
        ({"action_mode": "continuous"}, "action_mode is 'continuous' but must be one of"),
        ({"images": None}, "AttackEnv has no data of its own; give images"),
        ({"images": pool(labels=None)}, "whose images all have labels"),
        ({"max_episode_steps": 4}, "leave it out"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        made(**settings)


def test_a_label_without_a_class_is_refused():
    with pytest.raises(ValueError, match=r"labels have values \[2\] but the model has classes 0 .. 1"):
        begun(model=small_victim(2, 2), images=pool())


def test_a_victim_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"model is 'packaged', which tells .* but the images have"):
        AttackEnv(images=pool(), device="cpu")


@pytest.mark.parametrize(
    ("env_class", "settings"),
    [
        (VOCAttackEnv, {"size": 65, "phantom_scenes": PhantomScenes(val=4)}),
        (CityscapesAttackEnv, {"size": 65, "phantom_scenes": PhantomScenes(val=4)}),
        (LiverAttackEnv, {"cases": ["phantom_02000"]}),
    ],
)
def test_the_packaged_victims_are_mostly_right_and_can_be_broken(env_class, settings):
    env = env_class(num_envs=4, device="cpu", **settings)
    env.seed(range(4))
    env.reset()
    assert env.core.accuracy().mean() > 0.8
    assert env.core.options.intra_skip == (() if env_class is CityscapesAttackEnv else (0,))
    before = env.now["miou"].mean()
    played = play(env, RULES["rp_pgd"].policy(env, 0))
    assert played.returns.mean() > 0.1
    assert env.now["miou"].mean() < before - 0.1
    assert env.render().shape[0] >= 240
    assert len(env.legend()) > 4


def test_a_film_without_truth_has_no_regions():
    env = begun(1, render_mode="rgb_array")
    whole = env.render()
    env.shows_truth = False
    assert env.render().shape[1] < whole.shape[1]
    assert "True" not in str(env.legend())
    assert "mIoU" in env.caption(0)
    assert env.action_text(actions(env)[0]).count(" ") == 10

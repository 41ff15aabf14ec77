"""The environments of RP-PGD: reward, end and budget (docs/rp-pgd.md, Method 19 to 22)."""

import pytest
import torch
from attack_games import RULES, action, actions, begun, made, pool
from segarena.agents.policy import TrainedPolicy, play
from segarena.agents.ppo import Learner
from segarena.attacks.regions import BOUNDARY, FALSE, IGNORED, TRUE
from segarena.envs.attack_actions import NUMBERS
from segarena.envs.learner_env import LearnerEnv
from torch import nn


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


@pytest.mark.parametrize(("best", "damage"), [(False, 0.1), (True, 0.3)])
def test_a_paired_attack_is_judged_by_the_image_that_counts(monkeypatch, best, damage):
    """.80, .50, .70: its last image has lost .10, its best one .30."""
    values = iter([0.8, 0.5, 0.7])
    env = made(1, horizons=(2,), paired_baseline="pgd", best_iterate=best)
    monkeypatch.setattr("segarena.envs.attack_starts.measures", lambda _: {"miou": torch.tensor([next(values)])})
    env.seed([0])
    env.reset()
    assert env.baseline.item() == pytest.approx(damage)


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
    assert torch.allclose(env.observe()[:, 23], total, atol=1e-6), "the damage so far that is seen"
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

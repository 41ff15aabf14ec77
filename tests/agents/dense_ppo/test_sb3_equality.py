"""On an image of one pixel the learner is SB3's PPO: losses, gradients, epochs and minibatches."""

import numpy as np
import pytest
import torch
from dense_toys import Curves, Dots, OnePixel, learner
from segarena.agents.dense_ppo.ppo import DensePPOConfig
from segarena.envs.learner_env import LearnerEnv
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy


def one_pixel_pair(classes, **settings):
    """This learner and SB3's PPO with the same weights and the same rollout, both before `train`."""
    config = DensePPOConfig(
        **{"num_envs": 24, "kl_coef": 0.0, "ent_coef": 0.1, "max_grad_norm": 1e9, "value_output": "linear", **settings}
    )
    mine = learner(config, OnePixel(24, classes), Dots, norm_mode="group")
    theirs = PPO(
        ActorCriticPolicy,
        LearnerEnv(OnePixel(24, classes)),
        learning_rate=config.actor_lr,
        n_steps=1,
        batch_size=mine.batch_size,
        n_epochs=config.n_epochs,
        gamma=1.0,
        normalize_advantage=False,
        ent_coef=config.ent_coef,
        vf_coef=1.0,
        max_grad_norm=1e9,
        policy_kwargs={"net_arch": [], "optimizer_kwargs": {"eps": 1e-8}},
        device="cpu",
    )
    for linear, dot in linears(theirs, mine):
        linear.weight.data, linear.bias.data = dot.weight.data.flatten(1).clone(), dot.bias.data.clone()
    for model in (mine, theirs):
        model._setup_learn(0, Curves(), reset_num_timesteps=True)
    _, callback = mine._setup_learn(0, Curves())
    mine.collect_rollouts(mine.env, callback, mine.rollout_buffer, 1)
    got, own = theirs.rollout_buffer, mine.rollout_buffer
    got.reset()
    maps = (own.rewards, own.old_values, own.old_log_prob)
    rewards, values, log_probs = (x[0, :, 0, 0] for x in maps)
    got.add(
        own.observations[0].numpy(), own.actions[0].flatten(1).numpy(), rewards.numpy(), np.ones(24), values, log_probs
    )
    got.compute_returns_and_advantage(torch.zeros(24), np.ones(24, dtype=bool))
    return mine, theirs


def linears(theirs, mine):
    return (theirs.policy.action_net, mine.policy.actor), (theirs.policy.value_net, mine.policy.critic)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_on_one_pixel_losses_and_gradients_are_those_of_sb3(classes):
    mine, theirs = one_pixel_pair(classes, n_epochs=1)
    for model in (mine, theirs):
        model.train()
    ours, sb3 = mine.logger.name_to_value, theirs.logger.name_to_value
    assert ours["train/policy_loss"] == pytest.approx(sb3["train/policy_gradient_loss"], rel=1e-5)
    assert ours["train/value_loss"] == pytest.approx(sb3["train/value_loss"], rel=1e-5)
    assert ours["train/entropy"] == pytest.approx(-sb3["train/entropy_loss"], rel=1e-5)
    assert ours["train/explained_variance"] == pytest.approx(float(sb3["train/explained_variance"]), rel=1e-4)
    for linear, dot in linears(theirs, mine):
        assert float(dot.weight.grad.abs().max()) > 1e-3
        torch.testing.assert_close(dot.weight.grad.flatten(1), linear.weight.grad, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(dot.bias.grad, linear.bias.grad, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(dot.weight.flatten(1), linear.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("classes", "batch_size"), [(3, None), (3, 8), (5, 6)])
def test_on_one_pixel_several_epochs_and_minibatches_end_like_sb3(monkeypatch, classes, batch_size):
    """With V held still, since SB3 takes the advantage once, and with a step so large that the clip acts."""
    mine, theirs = one_pixel_pair(classes, n_epochs=6, batch_size=batch_size, actor_lr=0.1, critic_lr=0.0)
    order = np.random.default_rng(0).permutation(24)
    monkeypatch.setattr(np.random, "permutation", lambda n: order)
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.from_numpy(order))
    theirs.policy.value_net.requires_grad_(False)
    for model in (mine, theirs):
        model.train()
    ours, sb3 = mine.logger.name_to_value, theirs.logger.name_to_value
    assert ours["train/clip_fraction"] == pytest.approx(sb3["train/clip_fraction"], abs=1e-6)
    assert ours["train/clip_fraction"] > 0.2
    assert ours["train/policy_loss"] == pytest.approx(sb3["train/policy_gradient_loss"], rel=1e-4)
    torch.testing.assert_close(
        mine.policy.actor.weight.flatten(1), theirs.policy.action_net.weight, rtol=1e-4, atol=1e-5
    )

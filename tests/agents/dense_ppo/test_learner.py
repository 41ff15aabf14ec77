"""PPO per pixel learns: toys whose thresholds a wrong sign misses; and refuses what does not fit together."""

import textwrap
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import segarena
import torch
from dense_toys import PLAIN, SIZE, Shapes, learner, trained, unet_learner
from gymnasium import spaces
from segarena.agents.dense_ppo.distribution import PixelCategorical
from segarena.agents.dense_ppo.policy import DensePolicy
from segarena.agents.dense_ppo.ppo import DensePPO, DensePPOConfig
from segarena.datasets.echo.images import PhantomPatients
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.rl4seg import EchoEnv
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes

SMALL_ECHO = {"size": 32, "phantom_patients": PhantomPatients(train=3), "device": "cpu"}


def argmax_accuracy(model, seed=123):
    """Share of right pixels of the most probable masks of new images, the statistics being those of the batch."""
    env = model.env.batched
    env.seed([seed + slot for slot in range(env.num_envs)])
    env.reset()
    model.policy.set_training_mode(True)
    return float((model.policy.get_distribution(env.observe()).mode() == env.truth).float().mean())


def test_a_scalar_critic_has_one_value_per_image_and_learns_the_mean_reward():
    model = learner(replace(PLAIN, critic="scalar", actor_lr=0.0))
    rewards = trained(model, 12).rewards
    with torch.no_grad():
        values = model.policy.predict_values(model.env.batched.observe())
    assert values.shape == (16, SIZE, SIZE)
    assert torch.equal(values, values[:, :1, :1].expand_as(values))
    assert float(values.mean()) == pytest.approx(rewards[-1], abs=0.05)


def test_the_critic_of_a_policy_that_stays_learns_where_it_is_right():
    model = learner(replace(PLAIN, actor_lr=0.0))
    model.policy.actor[-1].bias.data[0] += 3.0  # says background nearly everywhere
    curves = trained(model, 15)
    first, last = curves.rows[1], curves.rows[-1]
    assert last["train/explained_variance"] > 0.5 > first["train/explained_variance"]
    assert last["train/value_loss"] < 0.5 * first["train/value_loss"]


def test_it_learns_to_segment_from_rewards_alone():
    model = unet_learner()
    curves = trained(model, 20)
    first, last = curves.rows[1], curves.rows[-1]
    assert curves.rewards[0] < 0.45
    assert curves.rewards[-1] > 0.8
    assert argmax_accuracy(model) > 0.93  # background alone: 0.69
    assert last["train/entropy"] < 0.8 * first["train/entropy"]
    assert model.num_timesteps == 20 * 16
    assert curves.calls == ["start", "step", "end"] * 20


def test_a_large_beta_keeps_the_policy_at_the_reference():
    free, held = (trained(learner(replace(PLAIN, kl_coef=beta)), 25).rows[-1]["train/kl_ref"] for beta in (1e-9, 10.0))
    assert held < 0.02
    assert free > 0.2


def test_a_large_entropy_bonus_keeps_the_policy_undecided():
    free, held = (trained(learner(replace(PLAIN, ent_coef=bonus)), 25).rows[-1] for bonus in (0.0, 5.0))
    assert held["train/entropy"] > 1.05
    assert free["train/entropy"] < 0.8


def test_gold_actions_are_imitated_whatever_the_reward_says():
    """The gold mask calls every structure 1, which the reward refuses for the ring."""
    env = Shapes(gold=True)
    model = learner(replace(PLAIN, kl_coef=0.1, imitate=True), env)
    curves = trained(model, 40)
    mask, _ = model.predict(env.observe().numpy(), deterministic=True)
    gold = env.info()["gold_action"]
    assert float((torch.from_numpy(mask).view(gold.shape) == gold).float().mean()) > 0.85
    assert curves.rows[-1]["train/gold_fraction"] == 1.0
    assert curves.rows[-1]["train/adv_mean"] > 0.1  # ρ = 1, while V learns r of the action that was sampled
    assert torch.equal(model.rollout_buffer.actions.unique(), torch.tensor([0, 1], dtype=torch.uint8))


def test_what_is_kept_of_a_rollout_is_of_the_actions_that_were_given_and_of_the_policy_that_played():
    """l and l_ref of the gold actions, not of those that were sampled; KL(π ‖ π_ref), not the other way."""
    model = learner(replace(PLAIN, kl_coef=0.1, imitate=True, actor_lr=0.0, critic_lr=0.0), Shapes(gold=True))
    model.policy.actor[-1].bias.data += torch.tensor([2.0, 0.0, -1.0])  # another policy than the reference
    trained(model, 1)
    policy, buffer = model.policy, model.rollout_buffer
    obs, given = buffer.observations[0], buffer.actions[0]
    policy.set_training_mode(True)
    with torch.no_grad():
        own, reference = PixelCategorical(policy.logits(obs)), PixelCategorical(policy.logits(obs, policy.reference))
    torch.testing.assert_close(buffer.old_log_prob[0], own.log_prob(given))
    torch.testing.assert_close(buffer.ref_log_prob[0], reference.log_prob(given))
    forwards, backwards = (one.kl(other).mean(dim=(1, 2)) for one, other in ((own, reference), (reference, own)))
    torch.testing.assert_close(buffer.divergence[0], forwards)
    assert bool(((forwards - backwards).abs() > 0.05).all())
    assert model.logger.name_to_value["train/kl_ref"] == pytest.approx(float(forwards.mean()))


VARIANTS = {
    "group": {"critic": "none", "group_size": 4},
    "policy gradient": {"critic": "none", "objective": "pg", "n_epochs": 1},
    "scalar critic": {"critic": "scalar"},
    "correlated": {"exploration": "correlated", "exploration_sigma_px": 2.0},
    "stretched": {"stretch_reward": True},
    "penalised target": {"value_target": "penalised", "kl_coef": 0.001},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_learn_too(variant):
    config = replace(PLAIN, **VARIANTS[variant])
    model = learner(config)
    rewards = trained(model, 100 if config.n_epochs == 1 else 25).rewards
    assert rewards[-1] > rewards[0] + 0.15
    assert (model.policy.critic is None) == (config.critic == "none")


def test_binary_masks_are_learned_from_uint8_images_and_a_scalar_reward_is_spread():
    class Bytes(Shapes):
        def __init__(self):
            super().__init__(16, classes=2, binary=True, scalar=True)
            self.single_observation_space = spaces.Box(0, 255, (1, SIZE, SIZE), np.uint8)

        def observe(self, rows=None):
            return (super().observe(rows).clamp(0, 1) * 255).byte()

    model = learner(replace(PLAIN, head="bernoulli"), Bytes())
    trained(model, 2)
    rewards = model.rollout_buffer.rewards
    assert model.rollout_buffer.observations.dtype == torch.uint8
    assert torch.equal(rewards, rewards[..., :1, :1].expand_as(rewards))


TOYS = {
    "a grid of 4 x 4 actions for an image of 16 x 16": ({"classes": 2, "cell": 4}, {}),
    "binary actions, one logit each": ({"classes": 2, "binary": True}, {"head": "bernoulli"}),
    "binary actions on a grid": ({"classes": 2, "binary": True, "cell": 4}, {"head": "bernoulli"}),
    "rewards below 0": ({"pay": (-2.0, 1.0)}, {"value_output": "linear"}),
}


@pytest.mark.parametrize("toy", TOYS)
def test_it_learns_on_a_coarse_grid_with_binary_actions_and_from_any_reward(toy):
    settings, changes = TOYS[toy]
    env = Shapes(**settings)
    model = learner(replace(PLAIN, **changes), env)
    trained(model, 40)
    assert argmax_accuracy(model) > 0.95 > float((env.truth == 0).float().mean()) + 0.05
    actions, _ = model.predict(env.observe().numpy(), deterministic=True)
    assert actions.shape == env.truth.flatten(1).shape
    assert model.action_space.contains(actions[0])


def test_groups_are_judged_against_their_mean_pixel_by_pixel():
    model = learner(replace(PLAIN, critic="none", group_size=4))
    trained(model, 1)
    buffer = model.rollout_buffer
    assert torch.equal(buffer.observations[0, 0], buffer.observations[0, 3])
    mean = buffer.rewards[0, 4:8].mean(dim=0)
    torch.testing.assert_close(buffer.old_values[0, 5], mean)
    assert mean.unique().numel() > 1


def test_rollouts_of_longer_episodes_bootstrap_where_they_were_cut_off():
    """Three steps, then truncated: the last reward of an episode carries γ V on top."""
    model = learner(
        replace(PLAIN, num_envs=4, n_steps=6, gamma=0.5, batch_size=8), Shapes(4, horizon=3), norm_mode="frozen"
    )
    trained(model, 2)
    buffer = model.rollout_buffer
    assert torch.equal(buffer.dones.nonzero()[:, 0].unique(), torch.tensor([2, 5]))
    over = buffer.rewards[buffer.dones] % 1.0
    assert bool(((over > 0) & (over < 0.5)).all())
    assert bool(((buffer.rewards[~buffer.dones] % 1.0) == 0).all())
    assert [episode["l"] for episode in model.ep_info_buffer] == [3] * 16
    played = buffer.rewards.floor().mean(dim=(2, 3))  # without the γ V
    returns = torch.cat((played[:3].sum(dim=0), played[3:].sum(dim=0)))
    told = torch.tensor([episode["r"] for episode in list(model.ep_info_buffer)[-8:]])
    torch.testing.assert_close(told, returns)


@pytest.mark.parametrize("without_critic", [{"group_size": 2}, {"objective": "pg", "n_epochs": 1}])
def test_without_a_critic_the_returns_are_monte_carlo_whatever_lambda_says(without_critic):
    """Three steps, each with reward 1 in every pixel."""
    config = replace(PLAIN, num_envs=4, n_steps=3, gae_lambda=0.95, critic="none", **without_critic)
    model = learner(config, Shapes(4, horizon=3, group=config.group_size, pay=(1.0, 1.0)), norm_mode="frozen")
    trained(model, 1)
    returns = model.rollout_buffer.returns
    assert returns[:, 0, 0, 0].tolist() == [3.0, 2.0, 1.0]
    assert torch.equal(returns, returns[:, :1, :1, :1].expand_as(returns))


class FirstEndsAtOnce(Shapes):
    """Episodes of the first environment end in each step, the others never."""

    def _step(self, actions):
        terms, _ = super()._step(actions)
        return terms, torch.arange(self.num_envs) == 0


@pytest.mark.parametrize(
    ("env", "steps"), [(Shapes, 2), (partial(Shapes, horizon=3), 6), (partial(FirstEndsAtOnce, horizon=99), 8)]
)
def test_sb3s_callbacks_learn_which_episodes_ended(env, steps):
    """Two episodes for each of four environments, whoever plays them."""
    model = learner(replace(PLAIN, num_envs=4), env(4), norm_mode="frozen")
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps == 4 * steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_range": 1.5}, "clip_range is 1.5"),
        ({"n_epochs": 0}, "n_epochs is 0"),
        ({"kl_coef": -1.0}, "kl_coef is -1.0"),
        ({"exploration_scale": 0.0}, "exploration_scale is 0.0"),
        ({"target_kl": float("nan")}, "target_kl is nan"),
        ({"target_kl": 0.0}, "target_kl is 0.0"),
        ({"batch_size": 5}, "batch_size is 5 but must divide .* 32 images"),
        ({"group_size": 5, "critic": "none"}, "num_envs is 32 but must be a multiple of group_size, 5"),
        ({"group_size": 4}, "critic is 'unet' .* 'none' belongs to"),
        ({"critic": "none"}, "critic is 'none' with objective 'ppo' and group_size 1"),
        ({"critic": "none", "objective": "pg"}, "n_epochs is 5 but must be 1"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        DensePPOConfig(**settings)


def test_settings_that_do_not_fit_the_environment_are_refused():
    with pytest.raises(ValueError, match=r"norm_mode is 'batch'.*batch_size is 8"):
        learner(replace(PLAIN, batch_size=8))
    with pytest.raises(ValueError, match=r"environment plays 6 episodes at once, but group_size 4"):
        learner(replace(PLAIN, critic="none", group_size=4), Shapes(6))
    with pytest.raises(ValueError, match="head is 'bernoulli' but there are 3 actions"):
        learner(replace(PLAIN, head="bernoulli"))
    with pytest.raises(ValueError, match="env is 3 but must be a BatchedEnv"):
        DensePPO(DensePolicy, 3, PLAIN)
    with pytest.raises(ValueError, match="imitate is True but info has no gold"):
        trained(learner(replace(PLAIN, imitate=True)), 1)


def test_maps_of_another_size_than_the_actions_are_refused():
    env = Shapes(cell=4)
    env.info = lambda: {"pixel_reward": torch.ones(16, SIZE, SIZE)}
    with pytest.raises(ValueError, match=r"pixel_reward has shape \(16, 16, 16\) but must have \(16, 4, 4\)"):
        trained(learner(env=env), 1)
    env = Shapes(cell=4)
    env.action_shape = (5, 5)
    with pytest.raises(ValueError, match=r"action_shape is \(5, 5\) but height and width of the images, 16 x 16"):
        learner(env=env)


def test_the_policy_may_be_named_and_the_environment_be_given_as_it_is(monkeypatch):
    weights = []
    for policy, env in (
        (DensePolicy, LearnerEnv(EchoEnv(num_envs=2, **SMALL_ECHO))),
        ("DensePolicy", EchoEnv(num_envs=2, **SMALL_ECHO)),
        ("DensePolicy", gym.make_vec("RL4Seg-Echo-v0", num_envs=2, **SMALL_ECHO)),
    ):
        model = DensePPO(policy, env, policy_kwargs={"init_channels": 4}, seed=0, device="cpu").learn(4)
        assert type(model.policy) is DensePolicy
        weights.append(torch.cat([weight.flatten() for weight in model.policy.parameters()]))
    assert all(torch.equal(weights[0], other) for other in weights[1:])
    single = gym.make("RL4Seg-Echo-v0", **SMALL_ECHO)
    assert DensePPO("DensePolicy", single, policy_kwargs={"init_channels": 4}, device="cpu").n_envs == 1


def test_the_three_lines_of_the_environments_page_train(monkeypatch):
    code = EchoEnv.__doc__.split("by its own reward:\n", 1)[1].split("## References", 1)[0]
    assert len(code.split("\n    \n")[0].strip().splitlines()) == 3
    monkeypatch.setattr(segarena, "EchoEnv", partial(EchoEnv, **SMALL_ECHO))
    scope = {"segarena": segarena}
    exec(textwrap.dedent(code), scope)
    assert scope["model"].num_timesteps == 64

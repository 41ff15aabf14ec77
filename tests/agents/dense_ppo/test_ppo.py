"""PPO per pixel: the loss on known numbers, the networks and their modes, the learner on toys, and exact resume."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.agents import ppo as training
from segarena.agents.dense_ppo import ppo as dense_ppo
from segarena.agents.dense_ppo.buffer import DenseRolloutBuffer, said, stretched
from segarena.agents.dense_ppo.policy import DensePolicy, PixelCategorical, explore, map_shape, smooth_field
from segarena.agents.dense_ppo.ppo import DensePPO, DensePPOConfig, penalised_reward, policy_gradient, surrogate
from segarena.common.runs import Run
from segarena.envs.adapters import LearnerEnv
from segarena.envs.core import Advance, BatchedEnv, Ended
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

SIZE = 16
PLAIN = DensePPOConfig(num_envs=16, ent_coef=0.0, kl_coef=0.0, actor_lr=0.02, critic_lr=0.02)


class Shapes(BatchedEnv):
    """A textured disc in a ring: three classes, or two. r is pay[1] where the label is right, else pay[0]."""

    def __init__(
        self,
        num_envs=16,
        classes=3,
        size=SIZE,
        horizon=1,
        *,
        binary=False,
        gold=False,
        group=1,
        scalar=False,
        pay=(0.0, 1.0),
    ):
        super().__init__(num_envs=num_envs, device="cpu", horizon=horizon)
        self.classes, self.size, self.gold, self.group, self.scalar = classes, size, gold, group, scalar
        self.pay = pay
        self.single_observation_space = spaces.Box(-10.0, 10.0, (1, size, size), np.float32)
        pixels = size * size
        self.single_action_space = (
            spaces.MultiBinary(pixels) if binary else spaces.MultiDiscrete(np.full(pixels, classes))
        )
        self.truth = torch.zeros(num_envs, size, size, dtype=torch.uint8)
        self.image = torch.zeros(num_envs, 1, size, size)
        self.pixel_reward = torch.zeros(num_envs, size, size)

    def _reset(self, rows, options):
        draws = self.streams.uniform(4)
        draws = draws.view(-1, self.group, 4)[:, :1].expand(-1, self.group, 4).reshape(-1, 4)[rows].float()
        grid = (torch.arange(self.size) + 0.5) / self.size
        y, x = 0.35 + 0.3 * draws[:, 0, None, None], 0.35 + 0.3 * draws[:, 1, None, None]
        radius = 0.15 + 0.1 * draws[:, 2, None, None]
        far = ((grid[:, None] - y) ** 2 + (grid[None, :] - x) ** 2).sqrt()
        disc, ring = far < radius, (far >= radius) & (far < radius + 0.12)
        truth = disc.byte() + (2 * ring.byte() if self.classes > 2 else 0)
        self.truth = self.truth.index_copy(0, rows, truth)
        texture = torch.sin(40 * grid[:, None] * (1 + draws[:, 3, None, None]) + 31 * grid[None, :])
        image = disc.float() + 0.4 * ring + 0.15 * texture
        self.image = self.image.index_copy(0, rows, image[:, None])

    def _step(self, actions):
        masks = actions.view(self.truth.shape)
        assert masks.dtype == torch.uint8
        self.pixel_reward = torch.where(masks == self.truth, self.pay[1], self.pay[0])
        over = torch.full((self.num_envs,), self.horizon == 1)
        return self.pixel_reward.mean(dim=(1, 2)), over

    def observe(self, rows=None):
        return self.image if rows is None else self.image[rows]

    def info(self):
        said = {} if self.scalar else {"pixel_reward": self.pixel_reward}
        if self.gold:
            said |= {"gold": torch.ones(self.num_envs, dtype=torch.bool), "gold_action": (self.truth > 0).byte()}
        return said

    def state(self):
        return {**super().state(), "truth": self.truth, "image": self.image}

    def load_state(self, state):
        super().load_state(state)
        self.truth, self.image = state["truth"].clone(), state["image"].clone()

    def _render_frame(self, row):
        return np.zeros((self.size, self.size, 3), np.uint8)


class Few(DensePolicy):
    """Actor and critic are three convolutions each: enough for the toy, and fast."""

    def make_networks(self):
        outputs = (1 if self.head == "bernoulli" else self.classes, 1)
        actor, critic = (
            nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.GroupNorm(2, 8) if self.norm_mode == "group" else nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(8, out, 1),
            )
            for out in outputs
        )
        return actor, None if self.critic_kind == "none" else critic


def learner(config=PLAIN, env=None, policy=Few, seed=0, **policy_kwargs):
    kwargs = {"norm_mode": "batch", **policy_kwargs}
    env = env or Shapes(config.num_envs, group=config.group_size)
    return DensePPO(policy, LearnerEnv(env), config, policy_kwargs=kwargs, seed=seed, device="cpu")


def unet_learner(config=PLAIN, seed=0, **policy_kwargs):
    """The networks of the paper, small."""
    config, env = replace(config, actor_lr=2e-3, critic_lr=2e-3), Shapes(config.num_envs, size=32)
    return learner(config, env, DensePolicy, seed, init_channels=8, **policy_kwargs)


class Curves(BaseCallback):
    """What was logged, and mean r and entropy, at every rollout; also that SB3's hooks are called."""

    def __init__(self):
        super().__init__()
        self.rows, self.rewards, self.calls = [], [], []

    def _on_rollout_start(self):
        self.calls.append("start")
        self.rows.append(dict(self.logger.name_to_value))

    def _on_step(self):
        self.calls.append("step")
        return True

    def _on_rollout_end(self):
        self.calls.append("end")
        self.rewards.append(float(self.model.rollout_buffer.rewards.mean()))


def trained(model, rollouts):
    """Train; the curves of it."""
    curves = Curves()
    model.learn(rollouts * model.n_steps * model.n_envs, callback=curves)
    curves.rows.append(dict(model.logger.name_to_value))
    return curves


def argmax_accuracy(model, seed=123):
    """Share of right pixels of the most probable masks of new images, the statistics being those of the batch."""
    env = model.env.batched
    env.seed([seed + slot for slot in range(env.num_envs)])
    env.reset()
    model.policy.set_training_mode(True)
    return float((model.policy.get_distribution(env.observe()).mode() == env.truth).float().mean())


# -- the loss on known numbers: section 13 -----------------------------------------------------------------------------

O1 = {"pi": (0.5, 0.3, 0.2), "old": (0.4, 0.4, 0.2), "ref": (0.6, 0.2, 0.2), "r": 0.9, "v": 0.6}
O2 = {"pi": (0.2, 0.7, 0.1), "old": (0.4, 0.5, 0.1), "ref": (0.3, 0.6, 0.1), "r": 0.1, "v": 0.55}
O3 = {"pi": (0.8, 0.1, 0.1), "old": (0.75, 0.15, 0.1), "ref": (0.1, 0.1, 0.8), "r": 0.123, "v": 0.7}


def judged(*pixels, beta=0.05, gold=False, a=0):
    """ρ, A, surrogate and entropy of an image of 1 x P pixels that all take action a; and its maps."""

    def of(name):
        return PixelCategorical(torch.tensor([p[name] for p in pixels]).log().T[None, :, None])  # [1, C, 1, P]

    action = torch.full((1, 1, len(pixels)), a, dtype=torch.uint8)
    pi, l_old, l_ref = of("pi"), of("old").log_prob(action), of("ref").log_prob(action)
    r, v = (torch.tensor([p[name] for p in pixels])[None, None] for name in ("r", "v"))
    rho = penalised_reward(r, pi.log_prob(action), l_ref, torch.tensor([gold]), beta)
    gain = surrogate(pi.log_prob(action), l_old, rho - v, 0.2)
    return {"rho": rho, "A": rho - v, "gain": gain, "H": pi.entropy(), "l": pi.log_prob(action), "l_ref": l_ref}


def close(tensor, value):
    assert float(tensor) == pytest.approx(value, abs=2e-6)


def test_oracle_1_a_pixel_with_positive_advantage():
    out = judged(O1)
    close(out["l"] - out["l_ref"], -0.182322)
    close(out["rho"], 0.909116)
    close(out["A"], 0.309116)
    close(out["gain"], 0.370939)
    close(out["H"], 1.029653)
    close(-out["gain"].mean() - 0.15 * out["H"].mean(), -0.525387)


def test_oracle_2_a_pixel_with_negative_advantage():
    out = judged(O2)
    close(out["l"] - out["l_ref"], -0.405465)
    close(out["rho"], 0.120273)
    close(out["A"], -0.429727)
    close(out["gain"], -0.343781)
    close(out["H"], 0.801819)


@pytest.mark.parametrize(("beta", "r"), [(0.05, 0.123), (10.0, 0.9)])
def test_oracle_3_a_gold_pixel_depends_on_neither_beta_nor_reward(beta, r):
    out = judged({**O3, "r": r}, beta=beta, gold=True)
    close(out["A"], 0.3)
    close(out["gain"], 0.32)


def test_oracle_4_an_image_is_the_mean_of_its_pixels():
    out = judged(O1, O2)
    close(out["gain"].mean(), 0.013579)
    close(out["H"].mean(), 0.915736)


def test_the_learner_descends_exactly_these_terms():
    """One image of 1 x 2 pixels with the numbers of oracles 1 and 2, through the learner's own loss."""
    env = Shapes(1, size=1)
    env.single_observation_space = spaces.Box(0, 1, (1, 1, 2), np.float32)
    env.single_action_space = spaces.MultiDiscrete([3, 3])
    config = replace(PLAIN, num_envs=1, kl_coef=0.05, ent_coef=0.15)
    model = learner(config, env, Dots, norm_mode="group")
    logits, old, ref = (torch.tensor([p[k] for p in (O1, O2)]).log().T[None, :, None] for k in ("pi", "old", "ref"))
    action = torch.zeros(1, 1, 2, dtype=torch.uint8)
    returns, values = (torch.tensor([p[k] for p in (O1, O2)])[None, None] for k in ("r", "v"))
    l_old, l_ref = (PixelCategorical(x).log_prob(action) for x in (old, ref))
    image, gold = torch.zeros(1, 1, 1, 2), torch.tensor([False])
    batch = dense_ppo.Samples(image, action, l_old, l_ref, values, returns, gold)
    loss, scalars = model._loss(batch, (logits, values))
    close(scalars["policy_loss"], -0.013579)
    close(scalars["entropy"], 0.915736)
    close(scalars["value_loss"], (0.09 + 0.45**2) / 2)
    close(loss, -0.013579 - 0.15 * 0.915736 + (0.09 + 0.45**2) / 2)


def test_oracle_15_gae_of_one_step_episodes_is_the_reward_minus_the_value():
    box, actions = spaces.Box(0, 1, (1, 2, 3), np.float32), spaces.MultiDiscrete([3] * 6)
    buffer = DenseRolloutBuffer(4, box, actions, gamma=0.7, gae_lambda=0.3, n_envs=2)
    buffer.rewards, buffer.values = torch.rand(4, 2, 2, 3), torch.rand(4, 2, 2, 3)
    buffer.dones[:] = True
    buffer.compute_returns(torch.rand(2, 2, 3))
    torch.testing.assert_close(buffer.returns, buffer.rewards)


def test_gae_of_longer_episodes_equals_sb3s_in_every_pixel():
    from stable_baselines3.common.buffers import RolloutBuffer

    box, actions = spaces.Box(0, 1, (1, 2, 3), np.float32), spaces.MultiDiscrete([3] * 6)
    rng = np.random.default_rng(0)
    rewards, values = (rng.random((5, 2, 2, 3), dtype=np.float32) for _ in range(2))
    dones, last = rng.random((5, 2)) < 0.3, rng.random((2, 2, 3), dtype=np.float32)
    mine = DenseRolloutBuffer(5, box, actions, gamma=0.9, gae_lambda=0.8, n_envs=2)
    for step in range(5):
        told = (("rewards", rewards), ("values", values), ("dones", dones))
        mine.add(**{name: torch.from_numpy(array[step]) for name, array in told})
    mine.compute_returns(torch.from_numpy(last))
    for y, x in np.ndindex(2, 3):
        theirs = RolloutBuffer(5, box, spaces.Discrete(3), device="cpu", gamma=0.9, gae_lambda=0.8, n_envs=2)
        theirs.rewards, theirs.values = rewards[..., y, x].copy(), values[..., y, x].copy()
        theirs.episode_starts[1:] = dones[:-1]
        theirs.compute_returns_and_advantage(torch.from_numpy(last[..., y, x].copy()), dones[-1])
        np.testing.assert_allclose(mine.returns[..., y, x].numpy(), theirs.returns, rtol=1e-5)


def test_the_policy_gradient_standardises_the_reward_over_all_pixels():
    log_prob, rho = -torch.rand(2, 3, 3), torch.rand(2, 3, 3)
    expected = np.mean((rho.numpy() - rho.numpy().mean()) / rho.numpy().std(ddof=1) * log_prob.numpy())
    assert float(policy_gradient(log_prob, rho).mean()) == pytest.approx(float(expected), rel=1e-5)


def test_a_stretched_map_fills_the_unit_interval_and_a_constant_one_stays():
    maps = torch.stack((torch.tensor([[0.2, 0.4], [0.3, 0.2]]), torch.full((2, 2), 0.7)))
    torch.testing.assert_close(stretched(maps), torch.tensor([[[0.0, 1], [0.5, 0]], [[0.7, 0.7], [0.7, 0.7]]]))


# -- the distribution --------------------------------------------------------------------------------------------------


def test_the_joint_log_probability_is_that_of_sb3():
    logits, actions = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    theirs = MultiCategoricalDistribution([3] * 20).proba_distribution(logits.permute(0, 2, 3, 1).reshape(2, -1))
    mine = PixelCategorical(logits)
    torch.testing.assert_close(mine.joint_log_prob(actions), theirs.log_prob(actions.flatten(1)))
    torch.testing.assert_close(mine.joint_log_prob(actions), mine.joint_log_prob(actions.flatten(1).long()))
    torch.testing.assert_close(mine.entropy().sum(dim=(1, 2)), theirs.entropy())
    assert torch.equal(mine.mode().flatten(1).long(), theirs.mode())


def test_samples_are_as_frequent_as_they_are_probable():
    p = torch.tensor([0.2, 0.5, 0.3])
    drawn = PixelCategorical(p.log().view(1, 3, 1, 1).expand(1, 3, 200, 200)).sample()
    assert drawn.dtype == torch.uint8
    frequency = torch.bincount(drawn.flatten().long()) / drawn.numel()
    torch.testing.assert_close(frequency, p, rtol=0, atol=0.015)


def test_kl_is_that_of_torch():
    one, other = torch.randn(2, 1, 3, 4, 4)
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=x.permute(0, 2, 3, 1)) for x in (one, other))
    )
    torch.testing.assert_close(PixelCategorical(one).kl(PixelCategorical(other)), expected)


def agreement(actions):
    """Share of horizontally adjacent pixels with the same action."""
    return float((actions[..., 1:] == actions[..., :-1]).float().mean())


def test_correlated_exploration_changes_regions_and_iid_changes_grains():
    flat = PixelCategorical(torch.zeros(4, 3, 48, 48))
    settings = {"sigma_px": 4.0, "eps_greedy": 0.0}
    grains, regions, none = (explore(flat, kind, scale=1.0, **settings) for kind in ("iid", "correlated", "argmax"))
    assert agreement(grains) == pytest.approx(1 / 3, abs=0.02)
    assert agreement(regions) > 0.42
    assert not none.any()
    sure = PixelCategorical(torch.tensor([9.0, 0, 0]).view(1, 3, 1, 1).expand(4, 3, 48, 48))
    assert float((explore(sure, "correlated", scale=0.2, **settings) > 0).float().mean()) < 1e-3


def test_the_smooth_field_has_unit_variance_up_to_the_border_and_is_smooth():
    field = smooth_field(torch.zeros(64, 3, 24, 24), sigma_px=2.0)
    torch.testing.assert_close(field.square().mean(dim=(0, 1)), torch.ones(24, 24), rtol=0, atol=0.45)
    assert float(field.square().mean()) == pytest.approx(1.0, abs=0.1)
    assert float((field[..., 1:] * field[..., :-1]).mean()) == pytest.approx(math.exp(-1 / 16), abs=0.1)


@pytest.mark.parametrize("eps", [0.0, 0.5, 1.0])
def test_eps_greedy_takes_the_mode_more_often(eps):
    p = torch.tensor([0.5, 0.3, 0.2])
    distribution = PixelCategorical(p.log().view(1, 3, 1, 1).expand(1, 3, 150, 150))
    drawn = explore(distribution, "iid", scale=1.0, sigma_px=1.0, eps_greedy=eps)
    assert float((drawn == 0).float().mean()) == pytest.approx(eps + (1 - eps) * 0.5, abs=0.02)


# -- one pixel is SB3 --------------------------------------------------------------------------------------------------


class Dots(DensePolicy):
    """Actor and critic are 1 x 1 convolutions."""

    def make_networks(self):
        channels = self.observation_space.shape[0]
        critic = None if self.critic_kind == "none" else nn.Conv2d(channels, 1, 1)
        return nn.Conv2d(channels, self.classes, 1), critic


class OnePixel(BatchedEnv):
    """An image of one pixel and five channels; pays for its action by a fixed table."""

    def __init__(self, num_envs, classes):
        super().__init__(num_envs=num_envs, device="cpu", horizon=1)
        self.single_observation_space = spaces.Box(0.0, 1.0, (5, 1, 1), np.float32)
        self.single_action_space = spaces.MultiDiscrete([classes])
        self.image = torch.zeros(num_envs, 5, 1, 1)

    def _reset(self, rows, options):
        self.image = self.image.index_copy(0, rows, self.streams.uniform(5, rows).float()[..., None, None])

    def _step(self, actions):
        return self.image[:, 0, 0, 0] * (actions[:, 0] + 1) / 4, torch.ones(self.num_envs, dtype=torch.bool)

    def observe(self, rows=None):
        return self.image if rows is None else self.image[rows]

    def _render_frame(self, row):
        return np.zeros((1, 1, 3), np.uint8)


def one_pixel_pair(classes, **settings):
    """This learner and SB3's PPO with the same weights and the same rollout, both before `train`."""
    config = DensePPOConfig(**{"num_envs": 24, "kl_coef": 0.0, "ent_coef": 0.1, "max_grad_norm": 1e9, **settings})
    mine = learner(config, OnePixel(24, classes), Dots, norm_mode="group", value_output="linear")
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
    maps = (own.rewards, own.values, own.log_probs)
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


# -- the policy and its modes ------------------------------------------------------------------------------------------

MODES = ["frozen", "batch", "group"]


@pytest.mark.parametrize("critic", ["unet", "scalar"])
@pytest.mark.parametrize("norm_mode", MODES)
@pytest.mark.parametrize("reuse", [True, False])
def test_the_ratio_is_one_at_first_in_every_mode(norm_mode, critic, reuse):
    config = replace(PLAIN, critic=critic, batch_size=None if reuse or norm_mode == "batch" else 8)
    model = unet_learner(config, norm_mode=norm_mode)
    trained(model, 1)  # weights and statistics are no longer those of a fresh network
    _, callback = model._setup_learn(0, Curves(), reset_num_timesteps=False)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 1)
    buffer = model.rollout_buffer
    assert (buffer.forward_pass is not None) == (model.batch_size == 16)
    model.policy.set_training_mode(True)
    for batch in buffer.get(model.batch_size):
        with torch.no_grad():
            _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        ratio = (log_prob - batch.old_log_prob).exp()
        assert float((ratio - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("norm_mode", MODES)
def test_the_reference_stays_as_it_was(norm_mode):
    model = unet_learner(replace(PLAIN, kl_coef=0.1, ent_coef=0.1), norm_mode=norm_mode)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    trained(model, 2)
    parameters = dict(model.policy.named_parameters())
    for name, value in model.policy.state_dict().items():
        network, _, rest = name.partition(".")
        statistic = name not in parameters
        if network == "reference" and not (statistic and norm_mode == "batch"):
            assert torch.equal(value, before[name]), name
        if statistic and norm_mode == "frozen":
            assert torch.equal(value, before[name]), name
        if rest == "head.weight" and network != "reference":
            assert not torch.equal(value, before[name]), name
    optimised = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in model.policy.reference.parameters()}
    model.policy.anchor()
    assert torch.equal(model.policy.reference.head.weight, model.policy.actor.head.weight)


def test_a_bernoulli_head_is_a_sigmoid():
    model = learner(replace(PLAIN, head="bernoulli"), Shapes(16, classes=2, binary=True))
    policy, obs = model.policy, torch.rand(2, 1, SIZE, SIZE)
    policy.set_training_mode(False)
    z, one = policy.actor(obs)[:, 0], torch.ones(2, SIZE, SIZE, dtype=torch.uint8)
    torch.testing.assert_close(policy.get_distribution(obs).log_prob(one), z.sigmoid().log())
    assert torch.equal(policy.get_distribution(obs).mode().bool(), z > 0)


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


@pytest.mark.parametrize("norm_mode", MODES)
def test_saved_and_loaded_it_gives_the_same_masks(tmp_path, norm_mode):
    model = unet_learner(replace(PLAIN, gamma=0.9), norm_mode=norm_mode)
    trained(model, 1)
    images = model.env.batched.observe().numpy()
    expected, _ = model.predict(images, deterministic=True)
    assert expected.shape == (16, 32 * 32)
    assert model.action_space.contains(expected[0])
    model.save(tmp_path / "model")
    loaded = DensePPO.load(tmp_path / "model", device="cpu")
    assert (loaded.config, loaded.batch_size) == (model.config, 16)
    model.policy.save(tmp_path / "policy")
    for again in (loaded.policy, DensePolicy.load(tmp_path / "policy", device="cpu")):
        assert np.array_equal(again.predict(images, deterministic=True)[0], expected)
    assert loaded.predict(images[0], deterministic=True)[0].shape == (32 * 32,)


def test_what_sb3_asks_a_policy_for_has_these_shapes():
    policy, obs = learner(norm_mode="group").policy, torch.rand(2, 1, SIZE, SIZE)
    actions, values, log_prob = policy(obs)
    assert (actions.shape, actions.dtype) == ((2, SIZE * SIZE), torch.int64)
    again_values, again, entropy = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(again, log_prob)
    torch.testing.assert_close(again_values, values)
    assert values.shape == entropy.shape == (2, SIZE, SIZE)
    assert bool((entropy <= math.log(3) + 1e-6).all())


# -- every term acts ---------------------------------------------------------------------------------------------------


def gradients_of(config, env=None, **policy_kwargs):
    """Gradients of actor and critic after one update from a fixed start."""
    model = learner(config, env, norm_mode="frozen", **policy_kwargs)
    if model.policy.reference is not None:
        model.policy.reference[-1].bias.data += torch.tensor([1.0, 0.0, -1.0])
    trained(model, 1)
    return [
        torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (model.policy.actor, model.policy.critic)
    ]


BASE = replace(PLAIN, n_epochs=3, max_grad_norm=1e9)


@pytest.mark.parametrize(
    "change",
    [{"ent_coef": 0.5}, {"kl_coef": 0.5}, {"clip_range": 0.01}, {"stretch_reward": True}, {"max_grad_norm": 1e-3}],
)
def test_every_term_reaches_the_actor(change):
    configs = (BASE, replace(BASE, **change))
    without, with_term = (gradients_of(config, Shapes(pay=(0.3, 0.7)))[0] for config in configs)
    assert not torch.equal(without, with_term)


def test_the_critic_learns_rho_only_where_told_and_reaches_the_actor_through_the_advantage_only():
    base = replace(BASE, kl_coef=0.5)
    raw, penalised = gradients_of(base), gradients_of(replace(base, value_target="penalised"))
    assert not torch.equal(raw[1], penalised[1])
    quick = gradients_of(replace(base, critic_lr=0.1))
    assert not torch.equal(raw[0], quick[0])  # V of today: a critic that moves changes the next inner step
    once = replace(base, n_epochs=1)
    tight, loose = gradients_of(replace(once, max_grad_norm=1e-3)), gradients_of(once)
    assert float(tight[0].norm()) == pytest.approx(1e-3, rel=1e-2)
    assert torch.equal(tight[1], loose[1])  # only the actor is clipped


def test_a_target_kl_stops_the_inner_steps():
    assert learner_updates(target_kl=1e-9) < learner_updates(target_kl=None)


def learner_updates(**change):
    model = learner(replace(BASE, **change), norm_mode="frozen")
    start = model.policy.actor[-1].weight.detach().clone()
    trained(model, 1)
    return float((model.policy.actor[-1].weight.detach() - start).norm())


# -- learning: behavioural acceptance of section 13, scaled to seconds on a CPU ----------------------------------------


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
    free, held = (trained(learner(replace(PLAIN, kl_coef=beta)), 25).rows[-1]["train/kl_ref"] for beta in (0.0, 10.0))
    assert held < 0.02
    assert free > 0.2


def test_a_large_entropy_bonus_keeps_the_policy_undecided():
    free, held = (trained(learner(replace(PLAIN, ent_coef=bonus)), 25).rows[-1] for bonus in (0.0, 5.0))
    assert held["train/entropy"] > 1.05
    assert free["train/entropy"] < 0.8


def test_gold_actions_are_imitated_whatever_the_reward_says():
    """The gold mask calls every structure 1, which the reward refuses for the ring."""
    env = Shapes(gold=True)
    model = learner(replace(PLAIN, kl_coef=0.1), env)
    curves = trained(model, 40)
    mask, _ = model.predict(env.observe().numpy(), deterministic=True)
    gold = env.info()["gold_action"]
    assert float((torch.from_numpy(mask).view(gold.shape) == gold).float().mean()) > 0.85
    assert curves.rows[-1]["train/gold_fraction"] == 1.0
    assert curves.rows[-1]["train/adv_mean"] > 0.1  # ρ = 1, while V learns r of the action that was sampled
    assert torch.equal(model.rollout_buffer.actions.unique(), torch.tensor([0, 1], dtype=torch.uint8))


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


def test_groups_are_judged_against_their_mean_pixel_by_pixel():
    model = learner(replace(PLAIN, critic="none", group_size=4))
    trained(model, 1)
    buffer = model.rollout_buffer
    assert torch.equal(buffer.observations[0, 0], buffer.observations[0, 3])
    mean = buffer.rewards[0, 4:8].mean(dim=0)
    torch.testing.assert_close(buffer.values[0, 5], mean)
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


def test_what_is_said_of_a_step_is_taken_from_the_episodes_that_ended_in_it():
    env = Shapes(3)
    env.reset()
    env.pixel_reward += 0.25  # of the slots that go on
    ended = Ended(torch.tensor([1]), env.observe(), {"pixel_reward": torch.ones(1, SIZE, SIZE)}, [{}])
    step = Advance(env.observe(), torch.zeros(3), torch.tensor([False, True, False]), torch.zeros(3).bool(), ended)
    assert said(env, step, "pixel_reward")[:, 0, 0].tolist() == [0.25, 1.0, 0.25]
    assert said(env, step, "gold") is None


# -- logs, determinism and resume --------------------------------------------------------------------------------------

TAGS = (
    "policy_loss value_loss entropy approx_kl kl_ref clip_fraction ratio_mean adv_mean explained_variance "
    "gold_fraction grad_norm_actor"
)


def test_it_logs_what_the_paper_page_lists(tmp_path):
    model = learner()
    training.learn(model, Run(tmp_path), 48, [], checkpoint_every=1000, extra_state=dict, checkpoint=None)
    last = Run(tmp_path).metrics()[-1]
    assert {name for name in last if name.startswith("train/")} == {f"train/{tag}" for tag in TAGS.split()}
    assert {"rollout/ep_rew_mean", "rollout/pixel_reward_p10"} <= set(last)
    assert all(math.isfinite(value) for value in last.values())
    assert last["rollout/ep_rew_mean"] == pytest.approx(np.mean([episode["r"] for episode in model.ep_info_buffer]))
    assert last["train/gold_fraction"] == 0.0


class KilledError(Exception):
    pass


class Kill(BaseCallback):
    """Dies in the middle of rollout number `at`."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_step(self):
        self.at -= 1
        if self.at == 0:
            raise KilledError
        return True


RESUMED = {
    "one step": (replace(PLAIN, num_envs=4, kl_coef=0.1, ent_coef=0.1), 1, "frozen"),
    "batch statistics": (replace(PLAIN, num_envs=4, exploration="correlated", eps_greedy=0.1), 1, "batch"),
    "episodes across rollouts": (replace(PLAIN, num_envs=4, n_steps=4, batch_size=8, gamma=0.9), 3, "group"),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_killed_and_resumed_ends_bit_for_bit_like_one_that_was_not(tmp_path, case):
    config, horizon, norm_mode = RESUMED[case]
    total = 6 * config.num_envs * config.n_steps

    def run(folder, callbacks, checkpoint=None):
        model = learner(config, Shapes(4, horizon=horizon), norm_mode=norm_mode, seed=3)
        if checkpoint:
            training.restore(model, checkpoint)
        keep = {"checkpoint_every": 2 * config.num_envs * config.n_steps, "extra_state": dict, "checkpoint": checkpoint}
        training.learn(model, Run(folder), total, callbacks, **keep)
        return Run(folder).checkpoint()

    whole = run(tmp_path / "whole", [])
    with pytest.raises(KilledError):
        run(tmp_path / "killed", [Kill(4 * config.n_steps)])
    torch.rand(5)  # the global generator must not matter
    resumed = run(tmp_path / "killed", [], Run(tmp_path / "killed").resume())
    assert resumed.step == whole.step == total
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    assert torch.equal(whole.state["random"]["torch"], resumed.state["random"]["torch"])
    curves = [
        [{k: v for k, v in line.items() if not k.startswith("time/")} for line in Run(tmp_path / name).metrics()]
        for name in ("whole", "killed")
    ]
    assert curves[0] == curves[1]


def test_the_same_seed_gives_the_same_first_update():
    first, again, other = (trained(learner(seed=seed), 1).rows[-1]["train/policy_loss"] for seed in (0, 0, 1))
    assert first == again != other


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_range": 1.5}, "clip_range is 1.5"),
        ({"n_epochs": 0}, "n_epochs is 0"),
        ({"kl_coef": -1.0}, "kl_coef is -1.0"),
        ({"exploration_scale": 0.0}, "exploration_scale is 0.0"),
        ({"target_kl": float("nan")}, "target_kl is nan"),
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
    with pytest.raises(ValueError, match=r"kl_coef is 0.1 but the policy has no reference"):
        learner(replace(PLAIN, kl_coef=0.1), reference=False)
    with pytest.raises(ValueError, match=r"environment has 6 slots, but group_size 4"):
        learner(replace(PLAIN, critic="none", group_size=4), Shapes(6))
    with pytest.raises(ValueError, match="head is 'bernoulli' but there are 3 actions"):
        learner(replace(PLAIN, head="bernoulli"))
    with pytest.raises(ValueError, match="must be a LearnerEnv"):
        DensePPO(DensePolicy, Shapes(), PLAIN)
    with pytest.raises(ValueError, match="nothing to anchor"):
        learner(reference=False).policy.anchor()


@pytest.mark.parametrize(
    ("image", "actions"),
    [
        (spaces.Box(0, 1, (4,), np.float32), spaces.MultiDiscrete([2] * 4)),
        (spaces.Box(0, 1, (1, 2, 2), np.float32), spaces.Discrete(4)),
        (spaces.Box(0, 1, (1, 2, 2), np.float32), spaces.MultiDiscrete([2, 2, 2, 3])),
        (spaces.Box(0, 1, (1, 2, 2), np.float32), spaces.MultiBinary(5)),
    ],
)
def test_spaces_without_an_action_for_every_pixel_are_refused(image, actions):
    with pytest.raises(ValueError, match="but must be"):
        map_shape(image, actions)

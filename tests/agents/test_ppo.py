"""SB3's PPO inside a run: resuming in wrappers, the settings that users tune, and the callbacks of every learner."""

import math
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.agents.callbacks import Best
from segarena.agents.learning import learn, restore
from segarena.agents.ppo import Learner, PPOConfig
from segarena.common.finite import NotFiniteError
from segarena.common.resuming import training_in
from segarena.common.runs import Run
from segarena.common.stopping import Stopped
from segarena.envs.core import BatchedEnv
from segarena.envs.learner_env import LearnerEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecCheckNan, VecEnvWrapper, VecFrameStack, VecNormalize
from torch import nn

SMALL = {"num_envs": 4, "n_steps": 8, "batch_size": 16, "n_epochs": 2, "learning_rate": 1e-3}
ROLLOUT = 32


class Point(BatchedEnv):
    """Bring a point to 0 by small pushes; pays for closeness, less the effort."""

    def __init__(self, num_envs=4, *, parts=False):
        super().__init__(num_envs=num_envs, device="cpu", horizon=12)
        self.parts = parts
        self.reward_weights = {"closeness": 1.0, "effort": 1.0}
        box = spaces.Box(-100.0, 100.0, (2,), np.float32)
        picture = spaces.Box(0, 255, (3,), np.uint8)
        self.single_observation_space = spaces.Dict({"place": box, "picture": picture}) if parts else box
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.place = torch.zeros(num_envs)

    def _reset(self, env_ids, options):
        self.place = self.place.index_copy(0, env_ids, 4 * self.streams.uniform(1, env_ids)[:, 0].float() - 2)

    def _step(self, actions):
        self.place = self.place + actions[:, 0]
        return {"closeness": 1 - self.place.abs(), "effort": -0.1 * actions[:, 0] ** 2}, self.place.abs() > 5

    def observe(self, env_ids=None):
        place = self.place if env_ids is None else self.place[env_ids]
        vector = torch.stack((50 * place + 20, torch.ones_like(place)), dim=1)
        picture = torch.ones(len(place), 3, dtype=torch.uint8)
        return {"place": vector, "picture": picture} if self.parts else vector

    def state(self):
        return {**super().state(), "place": self.place}

    def load_state(self, state):
        super().load_state(state)
        self.place = state["place"].clone()

    def _render_frame(self, env_id):
        return np.zeros((1, 1, 3), np.uint8)


def learner(config=None, wrap=None, env=None, seed=3):
    config = config or PPOConfig(**SMALL)
    env = LearnerEnv(env or Point(config.num_envs))
    env = wrap(env) if wrap else config.wrap(env)
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    kwargs = config.policy_kwargs()
    return Learner(policy, env, seed=seed, device="cpu", policy_kwargs=kwargs, **config.ppo_kwargs())


def train(model, folder, rollouts, callbacks=()):
    """Trains from the last checkpoint in the folder on, where there is one."""
    run = Run(folder)
    if checkpoint := run.resume():
        restore(model, checkpoint)
    settings = {"checkpoint_every": 2 * ROLLOUT, "extra_state": dict, "checkpoint": checkpoint}
    learn(model, run, rollouts * ROLLOUT, list(callbacks), **settings)
    return run


class KilledError(Exception):
    pass


class Kill(BaseCallback):
    """Dies in step number `at`."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_step(self):
        self.at -= 1
        if not self.at:
            raise KilledError
        return True


WRAPS = {
    "nothing": lambda env: env,
    "VecNormalize": VecNormalize,
    "frames, normalised": lambda env: VecNormalize(VecFrameStack(env, 3)),
    "normalised frames": lambda env: VecFrameStack(VecNormalize(env, norm_reward=False), 3),
    "a dict": lambda env: VecNormalize(VecFrameStack(env, 2), norm_obs_keys=["place"]),
    "a check": lambda env: VecNormalize(VecCheckNan(env)),
}


@pytest.mark.parametrize("wraps", WRAPS)
def test_a_learner_in_wrappers_killed_and_resumed_ends_bit_for_bit_like_one_that_was_not(tmp_path, wraps):
    def fresh():
        return learner(wrap=WRAPS[wraps], env=Point(parts=wraps == "a dict"))

    whole = train(fresh(), tmp_path / "whole", 6)
    with pytest.raises(KilledError):
        train(fresh(), tmp_path / "killed", 6, [Kill(27)])
    torch.rand(5)  # the global generators must not matter
    np.random.rand(5)  # noqa: NPY002
    killed = Run(tmp_path / "killed")
    assert 0 < killed.checkpoint().step < 4 * ROLLOUT
    train(fresh(), tmp_path / "killed", 6)
    same(whole.checkpoint().weights, killed.checkpoint().weights)
    states = [{k: v for k, v in run.checkpoint().state.items() if not k.endswith("_bytes")} for run in (whole, killed)]
    same(*states)
    curves = [
        [{k: v for k, v in line.items() if "time/" not in k} for line in run.metrics()] for run in (whole, killed)
    ]
    assert curves[0] == curves[1]


def same(one, other, where="state"):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{where}[{number}]")
    else:
        assert one == other, where


def test_a_checkpoint_holds_the_statistics_of_the_wrapper(tmp_path):
    model = learner(wrap=VecNormalize)
    (state,) = train(model, tmp_path, 4).checkpoint().state["wrappers"]
    assert state["observations..mean"][0] == pytest.approx(model.env.obs_rms.mean[0])
    assert float(state["observations..count"]) == pytest.approx(4 * ROLLOUT + 4, abs=0.01)  # and the first observation
    assert float(state["rewards.var"]) != 1.0


def test_a_wrapper_of_unknown_state_is_refused_before_anything_is_learned(tmp_path):
    class Own(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

    model = learner(wrap=Own)
    with pytest.raises(ValueError, match="in a Own, whose state cannot be saved; use VecNormalize"):
        train(model, tmp_path, 1)
    assert model.num_timesteps == 0


def test_normalised_observations_and_rewards_are_learned_from():
    def closeness(**changes):
        env = Point(16)
        config = PPOConfig(**{**SMALL, "num_envs": 16, "n_steps": 24, "batch_size": 64, "n_epochs": 8, **changes})
        model = learner(config, env=env)
        model.learn(12 * 16 * 24)
        return sum(episode["r"] for episode in model.ep_info_buffer) / len(model.ep_info_buffer)

    normalised = closeness(normalize_observations=True, normalize_rewards=True)
    untrained = closeness(normalize_observations=True, normalize_rewards=True, learning_rate=1e-9)
    assert normalised > 3.0 > 0.0 > untrained


# -- numbers that are none ---------------------------------------------------------------------------------------------


def spoiled(model, number, spoil):
    """The learner, in whose `number`-th update `spoil(policy)` follows the gradient steps."""
    update, calls = model.train, []

    def train():
        update()
        calls.append(None)
        if len(calls) == number:
            with torch.no_grad():
                spoil(model.policy)

    model.train = train
    return model


ONE_STEP = PPOConfig(**{**SMALL, "batch_size": 32, "n_epochs": 1})


@pytest.mark.parametrize("rollouts", [4, 3], ids=["in the middle", "in the last update"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_none_ends_the_training_and_the_checkpoint_before_stays(tmp_path, rollouts, bad):
    """With one gradient step per rollout nothing of PyTorch's looks."""
    model = spoiled(learner(ONE_STEP), 3, lambda policy: policy.value_net.bias.fill_(bad))
    with pytest.raises(NotFiniteError) as stopped:
        train(model, tmp_path, rollouts)
    said = str(stopped.value)
    assert "training stopped at step 96: value_net.bias holds 1 numbers, of 1, that are NaN or infinite" in said
    assert f"the last checkpoint, {tmp_path / 'checkpoints' / 'step_000000000064'}, is from before" in said
    assert "Start a new run with a lower learning rate" in said
    kept = Run(tmp_path).checkpoint()
    assert kept.step == 64
    assert all(value.isfinite().all() for value in kept.weights.values())
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_loss_that_is_none_is_named(tmp_path):
    model = learner(ONE_STEP)
    update = model.train

    def bad_update():
        update()
        model.logger.record("train/value_loss", math.inf)

    model.train = bad_update
    with pytest.raises(NotFiniteError, match=r"stopped at step 32: train/value_loss is inf; the last checkpoint, "):
        train(model, tmp_path, 2)


def test_a_reward_that_is_none_is_named_by_its_term(tmp_path):
    class Bad(Point):
        def _step(self, actions):
            terms, ended = super()._step(actions)
            return {**terms, "effort": terms["effort"] + math.nan}, ended

    with pytest.raises(NotFiniteError, match=r"step 32: .*reward/effort is nan"):
        train(learner(ONE_STEP, env=Bad()), tmp_path, 2)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("where", ["weights", "observations"])
def test_what_pytorch_refuses_is_said_without_its_numbers(tmp_path, where):
    class Bad(Point):
        def observe(self, env_ids=None):
            return super().observe(env_ids) + math.nan

    if where == "weights":  # before the second of an update's gradient steps
        model = learner()
        model.policy.optimizer.register_step_post_hook(lambda *_: model.policy.log_std.data.fill_(math.nan))
    else:
        model = learner(env=Bad())
    with pytest.raises(NotFiniteError) as stopped:
        train(model, tmp_path, 2)
    said = {"weights": "log_std holds 1 numbers, of 1, that are NaN or infinite; the last checkpoint, "}
    said["observations"] = "step 0: an observation is NaN or infinite"
    assert said[where] in str(stopped.value)
    assert "tensor(" not in str(stopped.value)


def test_an_explained_variance_that_does_not_exist_is_left_out(tmp_path):
    """Where all returns are equal there is nothing to explain."""

    class Calm(Point):
        def _step(self, actions):
            terms, _ = super()._step(0 * actions)
            return {name: torch.zeros_like(term) for name, term in terms.items()}, torch.zeros(4, dtype=torch.bool)

    model = learner(PPOConfig(**{**SMALL, "gamma": 0.0}), env=Calm())
    with torch.no_grad():
        for parameter in model.policy.value_net.parameters():
            parameter.zero_()
    model.policy.value_net.requires_grad_(False)
    lines = train(model, tmp_path, 3).metrics()
    assert any("train/value_loss" in line for line in lines)
    assert not any("train/explained_variance" in line for line in lines)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_keeps_a_checkpoint_and_the_run_ends_like_one_that_was_not_stopped(tmp_path, name, heard_signals):
    class Send(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 108:
                os.kill(os.getpid(), getattr(signal, name))
            return True

    whole = train(learner(), tmp_path / "whole", 6)
    said = f"{name}: stopped; the checkpoint at step 128 is kept; continue with"
    with pytest.raises(Stopped, match=said), training_in(tmp_path / "stopped"):
        train(learner(), tmp_path / "stopped", 6, [Send()])
    train(learner(), tmp_path / "stopped", 6)
    same(whole.checkpoint().weights, Run(tmp_path / "stopped").checkpoint().weights)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_published_runs():
    published = {
        "learning_rate": 3e-4, "n_steps": 32, "batch_size": 512, "n_epochs": 4, "gamma": 0.99, "gae_lambda": 0.95,
        "clip_range": 0.2, "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.5,
        "clip_range_vf": None, "normalize_advantage": True, "target_kl": None,
    }  # fmt: skip
    assert PPOConfig().ppo_kwargs() == published
    env = LearnerEnv(Point())
    assert PPOConfig().wrap(env) is env
    adam = {"eps": 1e-5, "fused": True}
    assert PPOConfig().policy_kwargs({"net_arch": [3]}) == {
        "net_arch": [3],
        "log_std_init": 0.0,
        "optimizer_kwargs": adam,
    }
    assert learner().policy.optimizer.defaults["eps"] == PPO("MlpPolicy", env).policy.optimizer.defaults["eps"]


class Rates(BaseCallback):
    """Learning rate and clip range after each update."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_rollout_start(self):
        if self.num_timesteps:
            rate = self.model.policy.optimizer.param_groups[0]["lr"]
            self.seen.append((rate, self.logger.name_to_value["train/clip_range"]))

    def _on_step(self):
        return True


def test_linear_schedules_fall_to_zero_at_the_end(tmp_path):
    linear = {"learning_rate_schedule": "linear", "clip_range_schedule": "linear"}
    rates = Rates()
    model = learner(PPOConfig(**SMALL, **linear))
    train(model, tmp_path, 4, [rates])
    np.testing.assert_allclose(rates.seen, [(7.5e-4, 0.15), (5e-4, 0.1), (2.5e-4, 0.05)])
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0
    assert model.lr_schedule(-0.3) == 0.0, "a rollout that goes beyond the end does not learn backwards"


def test_settings_reach_the_learner_and_its_policy():
    changes = {"net_arch": [7, 5], "log_std_init": -1.5, "clip_range_vf": 0.3, "target_kl": 0.01}
    model = learner(PPOConfig(**SMALL, **changes, normalize_advantage=False))
    widths = [layer.out_features for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    assert widths == [7, 5]
    assert model.policy.log_std.tolist() == [-1.5]
    assert (model.clip_range_vf(1.0), model.target_kl, model.normalize_advantage) == (0.3, 0.01, False)


def test_normalising_wraps_the_floats_and_refuses_where_there_are_none():
    config = PPOConfig(**SMALL, normalize_observations=True, gamma=0.9)
    env = config.wrap(LearnerEnv(Point(parts=True)))
    assert isinstance(env, VecNormalize)
    assert (env.norm_obs_keys, env.norm_reward, env.gamma) == (["place"], False, 0.9)
    bytes_only = Point()
    bytes_only.single_observation_space = spaces.Box(0, 255, (4,), np.uint8)
    with pytest.raises(ValueError, match=r"normalize_observations is True but observations are .*none of them float32"):
        config.wrap(LearnerEnv(bytes_only))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate_schedule": "cosine"}, "learning_rate_schedule is 'cosine' but must be"),
        ({"clip_range_vf": 0.0}, "clip_range_vf is 0.0"),
        ({"target_kl": -1.0}, "target_kl is -1.0"),
        ({"net_arch": [64, 0]}, r"net_arch is \[64, 0\]"),
        ({"log_std_init": math.nan}, "log_std_init is nan"),
        ({"batch_size": 1}, "batch_size is 1 but must be at least 2"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)


def test_without_normalised_advantages_a_batch_may_be_one_sample():
    assert PPOConfig(batch_size=1, normalize_advantage=False).batch_size == 1


# -- callbacks ---------------------------------------------------------------------------------------------------------


def test_reward_terms_are_logged_as_means_per_step_and_add_up_to_the_reward(tmp_path):
    rewards = []

    class Look(BaseCallback):
        def _on_step(self):
            rewards.append(self.locals["rewards"].mean())
            return True

    last = train(learner(), tmp_path, 2, [Look()]).metrics()[-1]
    assert last["reward/effort"] < 0
    assert last["reward/closeness"] + last["reward/effort"] == pytest.approx(np.mean(rewards[8:]), abs=1e-5)


def test_the_best_weights_are_those_of_the_highest_score_and_nan_is_none():
    best, net = Best(), nn.Linear(1, 1)
    for step, score in enumerate([math.nan, 0.3, 0.7, 0.7, math.nan, 0.5]):
        nn.init.constant_(net.weight, step)
        best.consider(score, step, net)
    again = Best()
    again.load_state(best.state())
    assert (again.score, again.step, float(again.weights["weight"])) == (0.7, 2, 2.0)


def test_the_bar_shows_the_mean_return(tmp_path, capsys):
    train(learner(), tmp_path, 2)
    assert "reward=" in capsys.readouterr().err
    assert not capsys.readouterr().out


def test_checkpoints_need_a_whole_step_between_them(tmp_path):
    broken = partial(learn, learner(), Run(tmp_path), 32, [], extra_state=dict, checkpoint=None)
    with pytest.raises(ValueError, match="checkpoint_every is 0 steps"):
        broken(checkpoint_every=0)


@pytest.mark.parametrize("parts", [False, True])
def test_a_rollout_that_no_memory_holds_is_refused(parts):
    env = Point(1, parts=parts)
    PPOConfig(num_envs=4, n_steps=8, batch_size=16).check_memory(env)
    with pytest.raises(ValueError, match=r"ppo\.num_envs is 1000000000 and ppo\.n_steps 1024: .* this machine has"):
        PPOConfig(num_envs=10**9, n_steps=1024, batch_size=1024).check_memory(env)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("n_updates"),
        lambda state: state.update(n_updates="x"),
        lambda state: state["env"].update(returns=torch.zeros(99)),
        lambda state: state.update(observation=torch.zeros(4, 3)),
        lambda state: state["optimizer"].update(param_groups=[]),
        lambda state: state.update(episodes="x"),
    ],
)
def test_a_malformed_state_is_refused_by_the_name_of_its_file(tmp_path, change):
    run = Run(tmp_path)
    model = Learner("MlpPolicy", LearnerEnv(Point()), seed=3, device="cpu", **PPOConfig(**SMALL).ppo_kwargs())
    learn(model, run, ROLLOUT, [], checkpoint_every=ROLLOUT, extra_state=dict, checkpoint=None)
    checkpoint = run.checkpoint()
    change(checkpoint.state)
    fresh = Learner("MlpPolicy", LearnerEnv(Point()), seed=3, device="cpu", **PPOConfig(**SMALL).ppo_kwargs())
    with pytest.raises(ValueError, match=r"step_\d+/state\.pt does not fit this training .*; delete"):
        restore(fresh, checkpoint)

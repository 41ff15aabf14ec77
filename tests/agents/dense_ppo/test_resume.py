"""What a training of PPO per pixel logs, and that it repeats and resumes bit for bit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_toys import PLAIN, Shapes, learner, trained
from segarena.agents import learning as training
from segarena.common.runs import Run
from stable_baselines3.common.callbacks import BaseCallback

TAGS = ["policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "ratio_mean", "adv_mean"]
TAGS += ["explained_variance", "grad_norm_actor"]


@pytest.mark.parametrize("optional", [[], ["kl_ref", "gold_fraction"]])
def test_it_logs_what_the_docs_list_and_nothing_of_what_is_off(tmp_path, optional):
    env = Shapes(gold=True) if optional else None
    config = replace(PLAIN, kl_coef=0.1, imitate=True) if optional else PLAIN
    model = learner(config, env)
    training.learn(model, Run(tmp_path), 48, [], checkpoint_every=1000, extra_state=dict, checkpoint=None)
    last = Run(tmp_path).metrics()[-1]
    assert {name for name in last if name.startswith("train/")} == {f"train/{tag}" for tag in [*TAGS, *optional]}
    assert {"rollout/ep_rew_mean", "rollout/pixel_reward_p10"} <= set(last)
    assert all(math.isfinite(value) for value in last.values())
    assert last["rollout/ep_rew_mean"] == pytest.approx(np.mean([episode["r"] for episode in model.ep_info_buffer]))
    assert last["reward/right"] == pytest.approx(float(model.rollout_buffer.rewards.mean()))
    assert last["reward/wrong"] == 0.0
    assert last.get("train/gold_fraction", 1.0) == 1.0


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

    def run(folder, callbacks):
        kept = Run(folder)
        checkpoint = kept.resume()
        model = learner(config, Shapes(4, horizon=horizon), norm_mode=norm_mode, seed=3)
        if checkpoint:
            training.restore(model, checkpoint)
        keep = {"checkpoint_every": 2 * config.num_envs * config.n_steps, "extra_state": dict, "checkpoint": checkpoint}
        training.learn(model, kept, total, callbacks, **keep)
        return kept.checkpoint()

    whole = run(tmp_path / "whole", [])
    with pytest.raises(KilledError):
        run(tmp_path / "killed", [Kill(4 * config.n_steps)])
    torch.rand(5)  # the global generator must not matter
    resumed = run(tmp_path / "killed", [])
    assert resumed.step == whole.step == total
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    assert torch.equal(whole.state["random"]["torch"]["cpu"], resumed.state["random"]["torch"]["cpu"])
    curves = [
        [{k: v for k, v in line.items() if not k.startswith("time/")} for line in Run(tmp_path / name).metrics()]
        for name in ("whole", "killed")
    ]
    assert curves[0] == curves[1]


def test_the_same_seed_gives_the_same_first_update():
    first, again, other = (trained(learner(seed=seed), 1).rows[-1]["train/policy_loss"] for seed in (0, 0, 1))
    assert first == again != other

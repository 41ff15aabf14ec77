"""Training on a pretended CUDA device: no tensor is on the wrong device, and the host seldom waits for the device."""

import pytest
import torch
import yaml
from adversarial_toys import TINY
from device_police import DevicePolice
from segarena.agents.callbacks import RewardTerms, StopAtNaN
from segarena.agents.command_line import main
from segarena.agents.dense_ppo.policy import DensePolicy
from segarena.agents.dense_ppo.ppo import DensePPO, DensePPOConfig
from segarena.agents.ppo import LEARNERS, Learner, PPOConfig
from segarena.agents.rl4seg import stages
from segarena.agents.spars.policies import policy_arguments
from segarena.agents.spars.pool import Pool
from segarena.agents.spars.self_play import SelfPlay
from segarena.common.runs import Run
from segarena.datasets.echo.images import EchoDataConfig, PhantomPatients, load_echo
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.rl4seg import EchoEnv
from segarena.envs.spars import SparsEnv
from segarena.rewards.corrector import Corrector
from stable_baselines3.common.callbacks import CallbackList

SPARS = {
    "paper": "spars",
    "device": "cuda",
    "env": {"cases": ["phantom_02000"], "grid_shape": [32, 32, 24], "obs_mode": "features"},
    "validation": {"cases": ["phantom_01000"]},
    "test": {"cases": ["phantom_03000"]},
    "policy": "feature_mlp",
    "ppo": {"total_timesteps": 256, "num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1},
    "evaluation": {"rollouts": 2},
    "examine_every": 128,
}
RL4SEG = {
    "paper": "rl4seg",
    "device": "cuda",
    "source": {"size": 32, "phantom_patients": {"train": 2, "val": 1, "test": 0, "pred": 0}},
    "target": {"vendor": "b", "size": 32, "phantom_patients": {"train": 1, "val": 1, "test": 1, "pred": 2}},
    "network": {"init_channels": 2},
    "supervised": {"epochs": 1, "batch_size": 4},
    "shape_prior": {"epochs": 1, "init_channels": 1, "latent": 8},
    "iterations": 1,
    "initial_images": 2,
    "new_images": 4,
    "reward_net": {"epochs": 1},
    "ppo": {"epochs": 2, "batch": {"c0": 4}, "learner": {"n_epochs": 2}},
}


@pytest.fixture
def flags(monkeypatch):
    """cuDNN's settings; they and the precision of products are put back afterwards."""
    precision = torch.get_float32_matmul_precision()
    for name in ("deterministic", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, name == "benchmark")
    yield torch.backends.cudnn
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("config", [SPARS, RL4SEG, {**TINY, "device": "cuda"}], ids=["spars", "rl4seg", "rp_pgd"])
def test_a_training_is_fast_and_has_no_tensor_on_the_wrong_device(tmp_path, monkeypatch, flags, config):
    flags.benchmark = False
    # an untrained policy's masks pass as valid, and as their own correction: there is reward data after one epoch
    monkeypatch.setattr(stages, "valid_masks", lambda masks, border_policy: torch.ones(len(masks), dtype=torch.bool))
    monkeypatch.setattr(Corrector, "__call__", lambda self, masks: masks)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with DevicePolice(watch="segarena") as police:
        status = main(["train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")])
    assert not police.errors, police.errors
    assert status == 0
    assert (flags.benchmark, torch.get_float32_matmul_precision()) == (True, "high")


def test_an_iteration_of_dense_ppo_waits_for_its_three_logs_and_one_look_at_the_weights_only():
    with DevicePolice() as police:
        images = load_echo(EchoDataConfig(size=32, phantom_patients=PhantomPatients(train=2)), "train")
        env = EchoEnv(images=images, num_envs=8, sampler="shared", expose_truth=False, device="cuda")
        config = DensePPOConfig(num_envs=8, n_epochs=2, imitate=True)
        kwargs = {"init_channels": 2, "norm_mode": "batch"}
        model = DensePPO(DensePolicy, LearnerEnv(env), config, policy_kwargs=kwargs, seed=0, device="cuda")
        model.learn(8, callback=RewardTerms(env))
        callback = CallbackList([StopAtNaN(Run("nowhere")), RewardTerms(env)])
        with police.count() as counted:
            model.learn(16, callback=callback, reset_num_timesteps=False)  # two iterations
    assert not police.errors, police.errors
    own = sum(times for (_, where), times in counted.waits.items() if where.startswith("dense_ppo/"))
    assert own == 2 * 2, counted.report()  # the logs of rollout and update
    # and that of the reward's terms, and the look at the weights, of which there is one more at the end
    assert counted.total <= 4 * 2 + 1, counted.report()


@pytest.mark.parametrize(("threshold", "ends"), [(1.0, 0), (0.3, 2)], ids=["nothing ends", "episodes end"])
@pytest.mark.parametrize("algorithm", ["ppo", "maskable"])
def test_a_rollout_of_ppo_stays_on_the_device_and_cudnn_is_left_alone(flags, algorithm, threshold, ends):
    """A step waits to learn who ended and, where one did, for `infos` and its facts; nothing else goes to the host."""
    with DevicePolice() as police:
        env = SparsEnv(
            num_envs=16,
            device="cuda",
            obs_mode="features",
            cases=["phantom_02000"],
            grid_shape=(32, 32, 24),
            threshold=threshold,
            eval_dice=False,
        )
        arguments = policy_arguments("feature_mlp", env.single_observation_space)
        config = PPOConfig(num_envs=16, n_steps=16, batch_size=64, n_epochs=1)
        model = LEARNERS[algorithm](env=LearnerEnv(env), seed=0, device="cuda", **arguments, **config.ppo_kwargs())
        assert (flags.deterministic, flags.benchmark) == (False, True)
        callback = CallbackList([SelfPlay(env), RewardTerms(env)])
        model.learn(256, callback=callback)
        update, model.train = model.train, lambda: None
        with police.count() as rollout:
            model.learn(256, callback=callback, reset_num_timesteps=False)
        with police.count() as gradients:
            update()
    assert not police.errors, police.errors
    networks = ("common/distributions.py", "maskable/distributions.py")
    ours = {where: n for (_, where), n in rollout.waits.items() if not where.startswith(networks)}
    assert sum(ours.values()) <= (1 + ends) * 16 + 3, rollout.report()
    drawing = 13 if algorithm == "maskable" else 7  # by SB3's distributions, of learner and competitor
    assert rollout.total <= (drawing + 1 + ends) * 16 + 3, rollout.report()
    own = sum(n for (_, where), n in gradients.waits.items() if where.startswith("agents/"))
    assert own <= 2, gradients.report()  # V and returns, for the explained variance


def test_a_pool_of_opponents_adds_no_wait_to_those_of_its_networks(police):
    env = SparsEnv(
        num_envs=16, device="cuda", obs_mode="features", cases=["phantom_02000"], grid_shape=(32, 32, 24), threshold=1.0
    )
    arguments = policy_arguments("feature_mlp", env.single_observation_space)
    model = Learner(env=LearnerEnv(env), seed=0, n_steps=16, device="cuda", **arguments)
    pool = Pool("uniform", 16)
    for step in range(4):
        pool.add(model.policy, step)
    pool.draw(torch.arange(16))
    assert len(pool.births.unique()) > 1
    env.set_opponent(pool)
    env.seed(range(16))
    env.reset()
    obs = env.observe(player=1)
    for one in (pool, pool.snapshots[0]):
        one.act(obs, deterministic=True)
    with police.count() as of_one:
        pool.snapshots[0].act(obs, deterministic=True)
    with police.count() as of_four:
        pool.act(obs, deterministic=True)
    assert of_four.total == 4 * of_one.total == 4, of_four.report()  # PyTorch's check of a distribution
    env.step(torch.zeros(16, dtype=torch.int64, device="cuda"))

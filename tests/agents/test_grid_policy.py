"""The policy over a grid of cells: its spaces, its masks, that it learns (docs/apga.md, Method 16)."""

import pytest
import torch
from apga_toys import OPTIMUM, Cells, pool, toy
from gymnasium import spaces
from segarena.agents.dense_ppo.plain import SAME, check_dense, dense_learner
from segarena.agents.dense_ppo.ppo import DensePPO, DensePPOConfig
from segarena.agents.generic import PPOExperiment, check
from segarena.agents.grid_policy import GridPolicy, MaskableGridPolicy, grid_of
from segarena.agents.policy import TrainedPolicy, play
from segarena.agents.ppo import Learner, MaskableLearner, PPOConfig
from segarena.datasets.xray.images import PhantomStudies
from segarena.envs.learner_env import LearnerEnv

IMAGES = spaces.Box(0, 255, (1, 32, 32), "uint8")


def test_the_grid_is_read_off_the_spaces():
    assert grid_of(IMAGES, spaces.MultiBinary(16)) == 4
    assert grid_of(IMAGES, spaces.Discrete(17)) == 4
    assert grid_of(IMAGES, spaces.MultiDiscrete([4] * 4)) == 4
    assert grid_of(IMAGES, spaces.Box(0, 1, (16,))) == 4
    for observations, actions, match in (
        (IMAGES, spaces.MultiBinary(15), "it needs MultiBinary"),
        (IMAGES, spaces.MultiDiscrete([4, 4, 4, 2]), "it needs MultiBinary"),
        (IMAGES, spaces.MultiDiscrete([4] * 9), "it needs MultiBinary"),
        (IMAGES, spaces.Box(-1, 1, (16,)), "it needs MultiBinary"),
        (IMAGES, spaces.MultiBinary(9), "halved a number of times"),
        (spaces.Box(0, 1, (4,)), spaces.MultiBinary(16), "no square images"),
    ):
        with pytest.raises(ValueError, match=match):
            grid_of(observations, actions)


def test_the_first_masks_are_small_and_no_layer_goes_from_pixels_to_cells():
    torch.manual_seed(0)
    policy = GridPolicy(IMAGES, spaces.MultiBinary(16), lambda _: 1e-3, width=8)
    assert max(parameter.numel() for parameter in policy.parameters()) < 40_000, "no layer from pixels to cells"
    obs = torch.zeros(64, 1, 32, 32, dtype=torch.uint8)
    actions, values, log_prob = policy(obs)
    assert (actions.shape, values.shape, log_prob.shape) == ((64, 16), (64, 1), (64,))
    assert 0.02 < actions.mean() < 0.3
    again = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(again[1], log_prob)


def test_the_maskable_policy_takes_no_masked_action_and_can_stop():
    torch.manual_seed(0)
    policy = MaskableGridPolicy(spaces.Box(0, 255, (2, 32, 32), "uint8"), spaces.Discrete(17), lambda _: 1e-3, width=8)
    masks = torch.zeros(500, 17, dtype=torch.bool)
    masks[:, [3, 16]] = True
    obs = torch.zeros(500, 2, 32, 32, dtype=torch.uint8)
    actions, _, log_prob = policy(obs, action_masks=masks)
    assert set(actions.tolist()) == {3, 16}
    torch.testing.assert_close(policy.evaluate_actions(obs, actions, action_masks=masks)[1], log_prob)


def test_a_run_with_a_grid_that_does_not_fit_is_refused_before_it_begins():
    settings = {"size": 48, "grid": 16, "phantom_studies": PhantomStudies(train=4)}
    with pytest.raises(ValueError, match="halved a number of times"):
        check(PPOExperiment(env="APGA-MURA-v0", settings=settings, network="grid"))
    with pytest.raises(ValueError, match="remembers nothing"):
        check(PPOExperiment(env="APGA-MURA-v0", network="grid", ppo=PPOConfig(algorithm="recurrent")))


@pytest.mark.parametrize(
    ("mode", "ppo", "match"),
    [
        ("box", PPOConfig(), "one for each place of a grid"),
        ("pixel", PPOConfig(algorithm="maskable"), r"ppo\.algorithm is 'maskable', which network 'dense'"),
        ("pixel", PPOConfig(learning_rate_schedule="linear"), r"ppo\.learning_rate_schedule is 'linear'"),
    ],
)
def test_a_dense_network_refuses_what_it_has_no_use_for(mode, ppo, match):
    settings = {"size": 32, "grid": 4, "phantom_studies": PhantomStudies(train=4), "action_mode": mode}
    with pytest.raises(ValueError, match=match):
        check(PPOExperiment(env="APGA-MURA-v0", settings=settings, network="dense", ppo=ppo))


def test_a_dense_learner_has_the_settings_of_plain_ppo_and_moves():
    ppo = PPOConfig(
        total_timesteps=32, num_envs=8, n_steps=2, batch_size=16, learning_rate=1e-2, target_kl=0.5, ent_coef=1e-3
    )
    env = toy(8, pool(2), action_mode="pixel")
    check_dense(ppo, env)
    model = dense_learner(ppo, env, 0)
    config = model.config
    assert {name: getattr(config, name) for name in SAME} == {name: getattr(ppo, name) for name in SAME}
    assert (config.actor_lr, config.critic_lr, config.ratio, config.kl_coef) == (1e-2, 1e-2, "factored", 0.0)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(32)
    still = [name for name, value in model.policy.state_dict().items() if torch.equal(value, before[name])]
    assert not still, "every weight has a gradient"


def learned(policy, **settings):
    env = toy(1, **settings)
    return play(env, TrainedPolicy(policy, deterministic=True)).returns.item()


@pytest.mark.parametrize("ratio", ["factored", "mean", "sum"])
def test_ppo_over_a_grid_learns_the_best_of_all_masks(ratio):
    config = DensePPOConfig(
        num_envs=64,
        ent_coef=1e-3,
        kl_coef=0.0,
        actor_lr=3e-2,
        critic_lr=3e-2,
        critic="scalar",
        head="bernoulli",
        value_output="linear",
        ratio=ratio,
    )
    model = DensePPO(Cells, toy(64), config, policy_kwargs={"norm_mode": "group"}, seed=0, device="cpu")
    assert learned(model.policy) < 0.95 * OPTIMUM
    model.learn(2000)
    assert learned(model.policy) >= 0.95 * OPTIMUM


@pytest.mark.parametrize("mode", ["patch", "sequential", "box", "beta"])
def test_stable_baselines_learns_with_the_policy_over_a_grid(mode):
    settings = {"action_mode": mode, **({"horizon": 5} if mode == "sequential" else {})}
    kind, policy = (MaskableLearner, MaskableGridPolicy) if mode == "sequential" else (Learner, GridPolicy)
    deviation = {"log_std_init": -1.0} if mode == "beta" else {}
    model = kind(
        policy,
        LearnerEnv(toy(32, pool(2), **settings)),
        n_steps=4,
        batch_size=64,
        n_epochs=4,
        learning_rate=3e-3,
        ent_coef=1e-3,
        gamma=1.0,
        seed=0,
        device="cpu",
        policy_kwargs={"width": 8, **deviation},
    )
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(768)
    least = 0.4 if mode in ("box", "beta") else 0.5  # the best box has 0.52
    assert learned(model.policy, **settings) > least * OPTIMUM
    still = [name for name, value in model.policy.state_dict().items() if torch.equal(value, before[name])]
    assert not still, "every weight has a gradient"

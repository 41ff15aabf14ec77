"""The networks of a policy that acts in every pixel: their modes, heads and critics, and what SB3 asks of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_toys import PLAIN, SIZE, Curves, Shapes, learner, trained, unet_learner
from gymnasium import spaces
from segarena.agents.dense_ppo.policy import DensePolicy, map_shape
from segarena.agents.dense_ppo.ppo import DensePPO

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


def test_a_bernoulli_head_is_a_sigmoid():
    model = learner(replace(PLAIN, head="bernoulli"), Shapes(16, classes=2, binary=True))
    policy, obs = model.policy, torch.rand(2, 1, SIZE, SIZE)
    policy.set_training_mode(False)
    z, one = policy.actor(obs)[:, 0], torch.ones(2, SIZE, SIZE, dtype=torch.uint8)
    torch.testing.assert_close(policy.get_distribution(obs).log_prob(one), z.sigmoid().log())
    assert torch.equal(policy.get_distribution(obs).mode().bool(), z > 0)


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


def test_a_policy_of_a_coarse_grid_pools_what_its_networks_say_and_is_saved_with_it(tmp_path):
    model = learner(
        replace(PLAIN, kl_coef=0.1), Shapes(size=32, cell=8), DensePolicy, norm_mode="group", init_channels=2
    )
    policy, obs = model.policy, torch.rand(2, 1, 32, 32)
    logits = policy.actor(obs)  # [B, C, 32, 32]
    cells = logits.reshape(2, 3, 4, 8, 4, 8).mean(dim=(3, 5))
    torch.testing.assert_close(policy.logits(obs), cells)
    torch.testing.assert_close(policy.logits(obs, policy.reference), cells)
    assert policy.predict_values(obs).shape == (2, 4, 4)
    expected = model.predict(obs.numpy(), deterministic=True)[0]
    assert expected.shape == (2, 16)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    for again in (DensePPO.load(tmp_path / "model", device="cpu"), DensePolicy.load(tmp_path / "policy", "cpu")):
        assert np.array_equal(again.predict(obs.numpy(), deterministic=True)[0], expected)


def test_what_sb3_asks_a_policy_for_has_these_shapes():
    policy, obs = learner(norm_mode="group").policy, torch.rand(2, 1, SIZE, SIZE)
    actions, values, log_prob = policy(obs)
    assert (actions.shape, actions.dtype) == ((2, SIZE * SIZE), torch.int64)
    again_values, again, entropy = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(again, log_prob)
    torch.testing.assert_close(again_values, values)
    assert values.shape == entropy.shape == (2, SIZE, SIZE)
    assert bool((entropy <= math.log(3) + 1e-6).all())


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

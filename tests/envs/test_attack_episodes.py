"""The environments of RP-PGD: starts, results, memory, arguments, the packaged victims and films."""

import gc

import numpy as np
import pytest
import torch
from attack_games import RULES, action, actions, begun, made, pool
from attack_toys import small_victim, trained
from segarena.agents.policy import play
from segarena.datasets.scenes.images import PhantomScenes
from segarena.envs.adapters import SingleEnv
from segarena.envs.attack import AttackEnv
from segarena.envs.attack_tasks import CityscapesAttackEnv, LiverAttackEnv, VOCAttackEnv
from segarena.testing import check_env_contract
from torch import nn


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
    for number in range(120):
        env.advance(policy(env))
        if number % 40 == 39:
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
    check_env_contract(AttackEnv, steps=12, horizons=(2, 4), **victim, **settings)


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

"""SEAT's inner environment (docs/seat.md, Method 18)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from patch_toys import HALF, STOP, WHOLE, all_of, begun, pool, saved_plan, small
from segarena.agents.papers import POLICIES
from segarena.agents.policy import play
from segarena.agents.seat.rules import FAT, Steps
from segarena.attacks.victim import Normalized
from segarena.attacks.victims import PACKAGED_VOLUMES, save_victim
from segarena.common.overlap import class_counts, dice_batch, dice_case
from segarena.datasets.decathlon.cases import DecathlonConfig, load_decathlon
from segarena.datasets.sample import Sample
from segarena.datasets.volumes import VolumePool
from segarena.envs.adapters import SingleEnv
from segarena.envs.seat_attack import LOSSES, SEATAttackEnv
from segarena.envs.seat_attack_actions import SHARES, decode, encode
from segarena.testing import check_env_contract
from torch import nn

RULES = POLICIES["SEATAttack-MSD-v0"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return saved_plan(tmp_path_factory.mktemp("plan"))


# -- rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["loss", "dice", "margin"])
def test_the_return_is_the_change_of_the_measure_less_the_price(plan, reward):
    env = begun(plan, reward=reward, eps="64/255", price=0.03)
    assert list(env.reward_weights) == [reward, "price"]
    measure, sign = {"loss": ("loss", 1), "dice": ("dice_hard", -1), "margin": ("margin", -1)}[reward]
    first = env.now[measure]
    total = torch.zeros(4)
    for action in (HALF, WHOLE, 1):
        total = total + env.step(all_of(env, action))[0]
    assert not env.step(all_of(env, STOP))[0].any(), "a stop gives nothing"
    expected = sign * (env.now[measure] - first) - 0.03 * 3
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-5)
    assert (expected != -0.09).any()


class Linear(nn.Module):
    """Logits (0, 2 x)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return torch.cat([torch.zeros_like(images), self.weight * images], dim=1)


@pytest.mark.parametrize("mode", ["discrete", "multi", "box"])
def test_pgd_on_the_linear_network_returns_what_was_worked_out(mode, tmp_path):
    """docs/seat.md, Method 18: 1.082034 - 1.045481 - 4 * 0.02."""
    plan = saved_plan(tmp_path, (4, 1, 1))
    image = torch.tensor([0.5, -1.0, 0.0, 1.5]).view(1, 4, 1, 1)
    label = torch.tensor([1, 0, 1, 0], dtype=torch.uint8).view(4, 1, 1)
    volumes = VolumePool.of([Sample("by hand", image, label, (1.0, 1.0, 1.0), "phantom")], ["one"], ("MR",), ("a", "b"))
    env = begun(plan, 2, volumes=volumes, model=Linear(), loss="cross_entropy", action_mode=mode)
    info = env.info()
    assert info["loss"].tolist() == pytest.approx([1.045481] * 2, abs=1e-6)
    assert info["grad_l1"].tolist() == pytest.approx([0.920359] * 2, abs=1e-6)
    assert info["grad_l1_rel"].tolist() == pytest.approx([2.300898] * 2, abs=1e-5)
    played = play(env, Steps(4, 0.25))
    assert played.returns.tolist() == pytest.approx([-0.043447] * 2, abs=2e-6)
    assert played.lengths.tolist() == [5, 5]
    assert env.replays.delta[0].flatten().tolist() == pytest.approx([-0.078431, 0.078431, -0.078431, 0], abs=1e-6)
    assert env.observe()[0, 12:14].tolist() == pytest.approx([0.75, 0.75], abs=1e-5)
    assert env.info()["delta_linf_rel"].tolist() == pytest.approx([1, 1], abs=1e-5)


# -- observations and actions ----------------------------------------------------------------------------------------


def test_each_number_is_what_it_says(plan):
    env = begun(plan, channels=2, classes=3, eps="32/255", reference_magnitude=0.5, horizon=5)
    net, labels, images = small(2, 3).eval(), env.replays.labels, env.replays.images
    ranges = images.amax((2, 3, 4), keepdim=True) - images.amin((2, 3, 4), keepdim=True)

    def looked(x):
        leaf = x.clone().requires_grad_()
        logits = net(leaf)
        losses = LOSSES["dice_ce"](logits, labels)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        p, q = logits.softmax(dim=1).flatten(2), nn.functional.one_hot(labels.flatten(1), 3).movedim(2, 1)
        soft = 2 * (p * q).sum(2) / (p.sum(2) + q.sum(2) + 1e-5)
        counts = class_counts(logits.argmax(dim=1), labels, 3)
        return (
            losses.detach(),
            gradient,
            soft[:, 1:].mean(dim=1).detach(),
            counts,
            (ranges * gradient.abs()).flatten(1).sum(1),
        )

    first, gradient, soft, counts, strength = looked(images)
    start = env.observe()
    zero = torch.zeros(4)
    expected = [zero, zero + 2, first, zero, zero, soft, dice_batch(counts), strength.log10(), zero, strength / 0.5 - 1]
    torch.testing.assert_close(start, torch.stack([*expected, *[zero] * 5, dice_batch(counts)], dim=1))
    env.step(all_of(env, WHOLE))
    moved = env.replays.delta
    radius = 32 / 255 * ranges
    torch.testing.assert_close(moved, plain_project(images, images + radius * gradient.sign(), radius) - images)
    second, turned, soft, after, steeper = looked(images + moved)
    cosine = nn.functional.cosine_similarity(gradient.flatten(1), turned.flatten(1))
    flipped = (gradient.sign() * turned.sign() == -1).flatten(1).float().mean(dim=1)
    linear = ((second - first) / (gradient * moved).flatten(1).sum(1)).clamp(-2, 2)
    at_edge = (moved.abs() > 0.9999 * radius).flatten(1).float().mean(dim=1)
    share = (moved.abs() / radius).flatten(1).mean(dim=1)
    expected = [
        *(zero + 0.2, zero + 2, second, second - first, second - first, soft, dice_batch(after), steeper.log10()),
        *(steeper / strength - 1, steeper / 0.5 - 1, cosine, flipped, share, at_edge, linear, dice_batch(counts)),
    ]
    torch.testing.assert_close(env.observe(), torch.stack(expected, dim=1), rtol=1e-4, atol=1e-5)
    assert (at_edge > 0.9).all()
    info = env.info()
    torch.testing.assert_close(info["dice_per_class"], dice_case(after))
    torch.testing.assert_close(info["loss0"], first)
    assert info["n_fwd"].tolist() == info["n_bwd"].tolist() == [2] * 4


def plain_project(images, moved, radius):
    low, high = (getattr(images, end)((2, 3, 4), keepdim=True) for end in ("amin", "amax"))
    return torch.minimum(torch.maximum(moved, (images - radius).maximum(low)), (images + radius).minimum(high))


@pytest.mark.parametrize("mode", ["dict", "volume_full"])
def test_volumes_show_image_prediction_perturbation_and_gradient(plan, mode):
    env = begun(plan, channels=2, classes=3, obs_mode=mode, volume_size=3)
    env.step(all_of(env, HALF))
    seen, replays = env.observe()["volume"], env.replays
    steep = replays.gradient.abs()
    full = [
        replays.adversarial,
        replays.logits.softmax(dim=1),
        (replays.delta.abs() / replays.ball.radius).mean(dim=1, keepdim=True),
        (steep / steep.flatten(1).amax(dim=1).view(-1, 1, 1, 1, 1)).mean(dim=1, keepdim=True),
    ]
    expected = torch.cat(full, dim=1)
    if mode == "dict":
        expected = nn.functional.avg_pool3d(expected, 2)
    torch.testing.assert_close(seen, expected)
    assert env.single_observation_space["volume"].shape == tuple(seen.shape[1:])


@pytest.mark.parametrize("mode", ["discrete", "multi", "box"])
def test_actions_are_decoded_and_encoded(mode):
    going = torch.tensor([True, False, True])
    for share in SHARES:
        goes, found = decode(mode, encode(mode, going, share))
        assert torch.equal(goes, going)
        assert found[going].tolist() == [share] * 2, "exactly"
    if mode == "box":
        goes, found = decode(mode, torch.tensor([[0.0, -1], [-0.01, 1], [1, 1]]))
        assert goes.tolist() == [True, False, True]
        assert found[[0, 2]].tolist() == [0.0625, 4.0]
        assert decode(mode, encode(mode, going, 0.3))[1].tolist() == pytest.approx([0.3] * 3)
    with pytest.raises(ValueError, match=r"a step size of 5 of the radius has no action"):
        encode(mode, going, 5.0)


# -- episodes ---------------------------------------------------------------------------------------------------------


def test_success_ends_an_episode_where_it_is_asked_for(plan):
    env = begun(plan, stop_on_success=True, dice_threshold=1.0)
    assert env.step(all_of(env, HALF))[1].all()
    never = begun(plan, stop_on_success=True, dice_threshold=0.0, eps="1/255", volumes=pool(4, shift=3.0))
    ends = never.step(all_of(never, 1))[1]
    assert torch.equal(ends, never.now["dice_hard"] <= 0)
    plain = begun(plan, dice_threshold=1.0)
    assert not plain.step(all_of(plain, HALF))[1].any()


def test_noise_is_carried_to_the_next_patch_of_the_environment(plan):
    env = begun(plan, start="carry")
    env.step(torch.tensor([HALF, HALF, HALF, STOP]))
    env.advance(torch.tensor([STOP, HALF, HALF, HALF]))
    delta, ball = env.carried[0], env.replays.ball
    assert (delta.abs().amax() > 0) & (env.carried[1:].abs().amax() == 0)
    assert torch.equal(env.replays.adversarial[0], ball.project(ball.images + env.carried)[0])
    assert begun(plan, start="zero").carried.numel() == 0


def test_scripted_policies_stop_when_they_should(plan):
    for name, length in {"noop": 1, "fgsm": 2, "pgd": 6, "free": 5, "seat": 3, "deat": 3}.items():
        row = RULES[name]
        env = begun(plan, **row.settings, eps="16/255")
        env.iterations = 3
        played = play(env, row.policy(env, 0))
        assert played.lengths.tolist() == [length] * 4, name
        assert played.terminated.all()
    env = begun(plan, dice_threshold=1.0)
    assert play(env, FAT(2)).lengths.tolist() == [3] * 4, "two steps after the start, where it had succeeded"
    assert play(begun(plan, dice_threshold=0.0), FAT()).lengths.max() <= 10


@pytest.mark.parametrize("mode", ["discrete", "multi", "box"])
def test_a_random_policy_takes_every_action(plan, mode):
    env = begun(plan, 256, action_mode=mode)
    drawn = RULES["random"].policy(env, 0)(env)
    assert torch.equal(env.actions_from(drawn), drawn)
    if mode == "box":
        assert drawn.min() < -0.9
        assert drawn.max() > 0.9
    else:
        assert drawn.view(256, -1).amax(dim=0).tolist() == ([5] if mode == "discrete" else [1, 4])
        assert not drawn.view(256, -1).amin(dim=0).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"obs_mode": "dict", "action_mode": "box", "start": "uniform", "reward": "margin", "return_delta": True},
        {"action_mode": "multi", "start": "carry", "eps_range": "window", "reward": "dice", "patches": "train"},
        {"update_victim": "every_step", "start": "carry", "independent": False},
        {"update_victim": "at_end", "start": "uniform", "independent": False},
    ],
    ids=str,
)
def test_every_kind_of_game_keeps_the_contract(plan, settings):
    check_env_contract(
        SEATAttackEnv, steps=16, horizon=3, plan=plan, volumes=pool(), model=small(), volume_size=4, **settings
    )


def test_the_packaged_victim_is_right_and_can_be_attacked():
    assert PACKAGED_VOLUMES["toy"].stat().st_size < 500_000
    assert PACKAGED_VOLUMES["toy"].with_suffix(".md").is_file()
    env = SEATAttackEnv(num_envs=4, device="cpu", eps="16/255")
    env.seed(range(4))
    env.reset()
    assert env.now["dice_hard"].mean() > 0.9
    played = play(env, RULES["pgd"].policy(env, 0))
    assert played.returns.min() > 0.02
    assert all(info["dice_lost"] > 0.05 for info in played.infos)
    assert env.render().shape[0] >= 160
    assert len(env.legend()) == 3
    assert "Dice" in env.caption(0)
    assert env.action_text(torch.tensor(3)) == "step of 0.5 b"


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_constant_patch_is_never_changed_but_within_a_window(plan):
    volumes = pool()
    flat = replace(volumes, images=torch.ones_like(volumes.images))
    for eps_range in ("patch", "window"):
        env = begun(plan, volumes=flat, eps_range=eps_range, obs_mode="dict", start="uniform")
        for action in (WHOLE, HALF, STOP):
            env.step(all_of(env, action))
            assert bool(env.replays.delta.any()) is (eps_range == "window"), "there its range is not its own"
            assert all(part.isfinite().all() for part in env.observe().values())


def test_what_is_not_finite_is_named(plan):
    net = small()
    with torch.no_grad():
        net.body[0].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"gradient of case_\d.* is not finite; look for NaN"):
        begun(plan, model=net)
    env = begun(plan, update_victim="every_step", learning_rate=1e30)
    env.step(all_of(env, HALF))
    _, terminated, _ = env.step(all_of(env, HALF))
    assert terminated.all()
    assert env.observe().isfinite().all()
    for ask in (env.reset, lambda: env.episode_info(torch.arange(2))):
        with pytest.raises(ValueError, match=r"give a smaller learning_rate where it learns"):
            ask()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"eps": 0}, "eps is 0 but must be above 0"),
        ({"eps": "-8/255"}, "eps is '-8/255' but must be above 0"),
        ({"eps": 8}, "8 grey levels are 8/255"),
        ({"iterations": 0}, "iterations is 0 but must"),
        ({"update_victim": "always"}, "update_victim is 'always' but must be one of"),
        ({"task": "Hippocampus"}, r"packaged.* of toy alone, none of Hippocampus"),
        ({"task": 9}, "no phantom"),
        ({"fold": 7}, "fold is 7 but there are 5 folds"),
        ({"split": "val[50:]"}, "val"),
        ({"model": small(1, 3)}, r"the model tells 3 classes apart but the volumes have \('background', 'ball'\)"),
        ({"volumes": "pool"}, "volumes is str but must be a VolumePool"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        SEATAttackEnv(device="cpu", **settings).reset()


def test_a_victim_of_another_task_is_refused(tmp_path):
    save_victim(tmp_path / "other.safetensors", Normalized(small(1, 3), [0.0], [1.0]), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"tells \('a', 'b', 'c'\) apart in 1 channel\(s\), but the volumes have"):
        SEATAttackEnv(model=tmp_path / "other.safetensors", device="cpu")


def test_patches_of_a_training_are_drawn_and_single_environments_play_them():
    env = SingleEnv(SEATAttackEnv(patches="train", split="train[:3]", device="cpu"))
    seen = [env.reset(seed=n)[0] for n in (0, 1, 0)]
    assert np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[1])
    drawn = env.batched.replays.images
    whole = load_decathlon(DecathlonConfig(task="toy"), "train[:3]")
    assert drawn.shape == (1, 1, 16, 16, 16)
    assert not any(torch.equal(drawn[0], whole[n].image) for n in range(3)), "augmented, or moved"

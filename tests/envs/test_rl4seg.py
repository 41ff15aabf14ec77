"""RL4Seg-Echo-v0: known rewards, samplers, gold masks, what is refused (docs/rl4seg.md, Method 2)."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from segarena.agents.policy import RandomPolicy
from segarena.agents.rl4seg.rules import (
    ConstantPolicy,
    CorrectorPolicy,
    NetworkPolicy,
    OraclePolicy,
)
from segarena.common.networks import save_network
from segarena.datasets.echo.images import PhantomPatients
from segarena.datasets.images import ImagePool
from segarena.envs.adapters import make_single
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.rl4seg import TRUTH_REWARDS, EchoEnv, structure_dice
from segarena.envs.rl4seg_config import REWARDS, EchoEnvConfig
from segarena.rewards.reward_net import RewardNet
from segarena.segmenters.unet import UNet


def pool(number=5, size=8, *, labels=True, seed=0):
    """Noise with random labels; the first pixel of image n is n."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, size, size), generator=generator, dtype=torch.uint8)
    images[:, 0, 0] = torch.arange(number)
    names = [f"p{n}_2CH_ED" for n in range(number)]
    return ImagePool(
        images=images[:, None],
        labels=torch.randint(3, images.shape, generator=generator, dtype=torch.uint8) if labels else None,
        ids=names,
        groups=[name[:2] for name in names],
        tags={"view": ["2CH"] * number, "instant": ["ED"] * number},
        spacing_mm=torch.full((number, 2), 0.5, dtype=torch.float64),
        classes=("background", "lv", "myo"),
        origin="phantom",
    )


def begun(images=None, *, seed=0, **settings):
    """An environment that shows its first images."""
    env = EchoEnv(images=images or pool(), device="cpu", **settings)
    env.seed([seed + env_id for env_id in range(env.num_envs)])
    env.reset()
    return env


def shown(env, steps):
    """Which images the environments show, [steps, N]."""
    blank, seen = torch.zeros_like(env.mask), []
    for _ in range(steps):
        seen.append(env.index)
        env.advance(blank)
    return torch.stack(seen)


def test_an_environment_names_where_its_images_come_from():
    assert begun().origin == "phantom"
    assert begun(replace(pool(), origin="real")).origin == "real"


# -- rewards -------------------------------------------------------------------------------------------------------

LABEL = torch.tensor([[1, 1], [2, 0]], dtype=torch.uint8)
MASK = torch.tensor([[1, 0], [2, 0]], dtype=torch.uint8)


def two_by_two():
    images = pool(1, 2)
    images.labels[0] = LABEL
    return images


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("pixel_accuracy", [[1, 0], [1, 1]]),
        ("accuracy", [[0.75] * 2] * 2),
        ("accuracy_map", [[0.75] * 2] * 2),
        ("dice", [[5 / 6] * 2] * 2),  # LV 2/3, MYO 1
        (["pixel_accuracy", "dice"], [[5 / 6, 0], [5 / 6, 5 / 6]]),
    ],
)
def test_each_reward_of_a_two_by_two_mask_is_as_computed_by_hand(reward, expected):
    env = begun(two_by_two(), reward=reward)
    worth, terminated, truncated = env.step(MASK[None])
    expected = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(env.info()["pixel_reward"][0], expected)
    torch.testing.assert_close(worth, expected.mean()[None])
    assert terminated.tolist() == [True]
    assert truncated.tolist() == [False]


def test_the_reward_is_one_term_named_as_the_argument():
    for settings, name in (
        ({"reward": "dice"}, "dice"),
        ({"reward": ["dice", "pixel_accuracy"]}, "dice+pixel_accuracy"),
        ({"reward_function": lambda images, masks, index: torch.ones(1, 1, 1)}, "reward_function"),
    ):
        env = begun(two_by_two(), **settings)
        reward, _, _ = env.step(MASK[None])
        assert list(env.reward_terms) == [name]
        assert torch.equal(env.info()[f"reward/{name}"], reward)


def test_dice_of_the_structures_is_as_computed_by_hand():
    nothing = torch.zeros(1, 2, 2, dtype=torch.uint8)
    dice = structure_dice(torch.cat((MASK[None], nothing, nothing)), torch.cat((LABEL[None], nothing, LABEL[None])))
    torch.testing.assert_close(dice, torch.tensor([[2 / 3, 1, 4 / 5], [1, 1, 1], [0, 0, 0]]))


def drawn(env, seed=0):
    """Masks of any labels."""
    return env.actions_from(RandomPolicy(env.single_action_space, seed)(env))


def test_the_smallest_of_several_rewards_is_worth_at_most_each_of_them():
    def play(reward):
        env = begun(num_envs=8, reward=reward)
        return env.step(drawn(env))[0]

    fused, *single = map(play, (list(TRUTH_REWARDS), *TRUTH_REWARDS))
    assert all((fused <= one).all() for one in single)
    assert (fused < torch.stack(single).amin(dim=0)).any(), "the least per pixel is less than the least mean"


def test_every_named_reward_lies_in_0_to_1_and_has_a_value_for_every_pixel(tmp_path):
    save_network(tmp_path / "r.safetensors", RewardNet(classes=3, init_channels=2))
    for name in REWARDS:
        env = begun(
            pool(3, 32),
            num_envs=2,
            reward=name,
            reward_net=tmp_path / "r.safetensors" if name == "reward_net" else None,
        )
        worth, _, _ = env.step(drawn(env))
        assert env.pixel_reward.shape == (2, 32, 32), name
        assert env.pixel_reward.dtype == torch.float32
        assert 0 <= env.pixel_reward.min() <= env.pixel_reward.max() <= 1
        torch.testing.assert_close(worth, env.pixel_reward.mean(dim=(1, 2)))
    assert set(REWARDS) == {"reward_net", "anatomical", *TRUTH_REWARDS}


def test_the_reward_network_judges_image_and_mask_without_truth(tmp_path):
    torch.manual_seed(0)
    net, path = RewardNet(classes=3, init_channels=2), tmp_path / "r.safetensors"
    save_network(path, net)
    env = begun(pool(3, 32, labels=False), num_envs=2, reward="reward_net", reward_net=str(path))
    mask, images = drawn(env), env.observe()
    env.step(mask)
    with torch.no_grad():
        torch.testing.assert_close(env.pixel_reward, net(images, mask))
    assert not env.pixel_reward.requires_grad
    assert "dice_lv" not in env.episode_info(torch.tensor([0]))[0]


def test_a_reward_network_for_other_classes_and_a_missing_one_are_refused(tmp_path):
    path = tmp_path / "four.safetensors"
    save_network(path, RewardNet(classes=4, init_channels=2))
    with pytest.raises(ValueError, match="RewardNet with classes = 4 but 3 is needed"):
        EchoEnv(images=pool(), reward="reward_net", reward_net=str(path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        EchoEnv(images=pool(), reward="reward_net", reward_net=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"needs reward_net=<weights\.safetensors>"):
        EchoEnvConfig(reward="reward_net")
    with pytest.raises(ValueError, match="no other reward takes one"):
        EchoEnvConfig(reward="dice", reward_net="x.safetensors")


def heart():
    """The mini heart of docs/rl4seg.md, Method 9, uint8 [16, 16]."""
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[2:13, 3:13], mask[4:13, 5:11] = 2, 1
    return mask


def test_anatomy_rewards_an_open_heart_and_not_a_closed_one():
    closed = heart()
    closed[12, 5:11] = 2
    env = begun(pool(2, 16, labels=False), num_envs=2, reward="anatomical", compute_validity=True)
    assert env.info()["is_valid"].tolist() == [False, False], "nothing was judged yet"
    worth, _, _ = env.step(torch.stack((heart(), closed)))
    assert worth.tolist() == [1.0, 0.0]
    assert env.info()["is_valid"].tolist() == [True, False]
    assert "is_valid" not in begun(compute_validity=False).info()


def test_a_function_may_be_the_reward_and_is_told_the_images():
    told = {}

    def reward(images, masks, index):
        told.update(images=images, masks=masks, index=index)
        return index[:, None, None].expand(masks.shape) / 10

    env = begun(num_envs=3, reward_function=reward)
    mask = drawn(env)
    worth, _, _ = env.step(mask)
    assert torch.equal(told["index"], env.index)
    assert torch.equal(told["images"], env.observe())
    assert torch.equal(told["masks"], mask)
    torch.testing.assert_close(worth, env.index / 10)
    wrong = begun(num_envs=3, reward_function=lambda images, masks, index: torch.ones(3))
    with pytest.raises(ValueError, match=r"the reward has shape \(3,\) but must have \(3, 8, 8\)"):
        wrong.step(mask)


# -- reference policies --------------------------------------------------------------------------------------------


def test_the_oracle_earns_one_and_every_dice_is_one():
    env = begun(num_envs=5)
    step = env.advance(OraclePolicy()(env))
    assert step.reward.tolist() == [1.0] * 5
    assert all(info[name] == 1.0 for info in step.ended.episode_info for name in ("dice_lv", "dice_myo", "dice_epi"))
    with pytest.raises(ValueError, match="no truth is known"):
        OraclePolicy()(begun(pool(labels=False), reward="anatomical"))


def test_random_labels_earn_a_third():
    env = begun(pool(4, 32), num_envs=64)
    worth, _, _ = env.step(drawn(env, 3))
    assert float(worth.mean()) == pytest.approx(1 / 3, abs=0.01)
    assert torch.equal(drawn(env, 3), drawn(env, 3))
    policy = RandomPolicy(env.single_action_space, 3)
    assert not torch.equal(policy(env), policy(env))


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_constant_label_earns_its_share_of_the_pixels(label):
    env = begun(num_envs=5)
    worth, _, _ = env.step(ConstantPolicy(label)(env))
    torch.testing.assert_close(worth, (env.truth() == label).float().mean(dim=(1, 2)))


def test_the_source_policy_is_the_argmax_of_its_network_and_the_corrector_follows_it():
    torch.manual_seed(0)
    net = UNet(1, 3, init_channels=2).eval()
    env = begun(pool(3, 32), num_envs=2)
    source = NetworkPolicy(net)(env)
    with torch.no_grad():
        assert torch.equal(source, net(env.observe()).argmax(dim=1).to(torch.uint8))
    corrected = CorrectorPolicy(net, lambda masks: (masks + 1) % 3)(env)
    assert torch.equal(corrected, (source + 1) % 3)
    assert 0 <= float(env.step(corrected)[0].mean()) <= 1


# -- actions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_masks_of_any_integers_flat_or_not_mean_the_same(kind):
    mask = pool().labels[2].numpy().astype(kind)
    env = make_single("segarena.envs.rl4seg:EchoEnv", images=pool(), device="cpu")
    for action in (mask, mask.ravel()):
        env.reset(options={"index": 2})
        assert env.step(action)[1] == 1.0


def test_tensors_may_come_flat_or_not_and_may_be_used_again():
    env = begun(num_envs=3)
    transposed = env.truth().mT.contiguous().mT
    for mask in (env.truth(), env.truth().flatten(1).long(), transposed):
        assert env.step(mask)[0].tolist() == [1.0] * 3
    mask = env.truth()
    env.step(mask)
    mask.zero_()
    assert torch.equal(env.mask, env.truth())


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (np.full((2, 64), 3), "outside"),
        (np.full((2, 8, 8), -1), "outside"),
        (np.zeros((2, 63), int), "shape"),
        (np.zeros((2, 4, 16), int), "shape"),
        (np.zeros((1, 64), int), "shape"),
        (np.zeros((2, 64)), "dtype"),
        (np.zeros((2, 8, 8), bool), "dtype"),
    ],
)
def test_wrong_labels_lengths_and_types_are_refused(bad, match):
    learner = LearnerEnv(EchoEnv(images=pool(), num_envs=2, device="cpu"))
    learner.reset()
    with pytest.raises(ValueError, match=match):
        learner.step(bad)
    if match != "outside":  # on the device the values are not looked at
        with pytest.raises(ValueError, match=match):
            learner.batched.step(torch.from_numpy(bad))


# -- images --------------------------------------------------------------------------------------------------------


def test_the_step_shows_the_same_image_and_the_next_episode_another():
    env = make_single("segarena.envs.rl4seg:EchoEnv", images=pool(), device="cpu")
    first, info = env.reset(seed=1)
    assert first.shape == (1, 8, 8)
    assert first.dtype == np.float32
    np.testing.assert_allclose(first, pool().images[info["index"]].numpy() / 255, rtol=1e-6)
    last, _, terminated, truncated, told = env.step(np.zeros(64, int))
    np.testing.assert_array_equal(first, last)
    assert (terminated, truncated) == (True, False)
    assert told["case_id"] == f"p{info['index']}_2CH_ED"
    assert (told["view"], told["instant"], told["spacing_mm"].tolist()) == ("2CH", "ED", [0.5, 0.5])
    assert env.reset()[1]["index"] != info["index"]

    batched = begun(num_envs=2)
    before, index = batched.observe(), batched.index
    step = batched.advance(torch.zeros_like(batched.mask))
    assert torch.equal(step.ended.obs, before)
    assert torch.equal(step.ended.info["index"], index)
    assert (batched.index != index).all()
    assert torch.equal(step.obs, batched.observe())


def test_per_env_samplers_show_every_image_once_a_pass_in_every_environment():
    seen = shown(begun(num_envs=4), 15)
    for part in seen.split(5):
        assert all(sorted(column) == [0, 1, 2, 3, 4] for column in part.T.tolist())
    assert len({tuple(part[:, 0].tolist()) for part in seen.split(5)}) > 1, "each pass is shuffled anew"
    assert len({tuple(column) for column in seen.T.tolist()}) == 4, "each environment has its own order"


@pytest.mark.parametrize(("num_envs", "size"), [(1, 5), (2, 5), (3, 7), (5, 5), (8, 3)])
def test_a_shared_sampler_shows_every_image_once_a_pass_however_many_environments(num_envs, size):
    seen = shown(begun(pool(size), num_envs=num_envs, sampler="shared"), 3 * size).flatten()
    passes = seen.split(size)
    assert all(sorted(one.tolist()) == list(range(size)) for one in passes)
    assert len({tuple(one.tolist()) for one in passes}) > 1


def test_a_group_of_environments_shows_one_image():
    seen = shown(begun(num_envs=6, sampler="shared", group=3), 10)  # two groups, five images: four passes
    assert torch.equal(seen, seen[:, ::3].repeat_interleave(3, dim=1))
    assert all(sorted(one.tolist()) == [0, 1, 2, 3, 4] for one in seen[:, ::3].flatten().split(5))
    with pytest.raises(ValueError, match="num_envs is 4 but must be a multiple of group, 3"):
        EchoEnv(images=pool(), num_envs=4, sampler="shared", group=3)
    with pytest.raises(ValueError, match="needs sampler='shared'"):
        EchoEnv(images=pool(), num_envs=4, group=2)
    with pytest.raises(ValueError, match="2 environments are to begin, but they begin in groups of 3"):
        begun(num_envs=6, sampler="shared", group=3).reset(torch.tensor([0, 1]))


@pytest.mark.parametrize("sampler", ["per_env", "shared"])
def test_the_seed_shuffles_the_images(sampler):
    env = begun(num_envs=2, sampler=sampler)
    first = shown(env, 10)
    env.seed([0, 1])
    env.reset()
    assert torch.equal(shown(env, 10), first)
    env.seed([5, 6])
    env.reset()
    assert not torch.equal(shown(env, 10), first)


@pytest.mark.parametrize("sampler", ["per_env", "shared"])
def test_chosen_images_are_shown_and_do_not_change_the_order(sampler):
    plain, choosing = begun(num_envs=2, sampler=sampler), begun(num_envs=2, sampler=sampler)
    choosing.reset(options={"index": 3})
    assert choosing.index.tolist() == [3, 3]
    for pair in ([4, 0], torch.tensor([4, 0], dtype=torch.int32), np.array([4, 0])):
        choosing.reset(options={"index": pair})
        assert choosing.index.tolist() == [4, 0]
    plain.reset()
    choosing.reset()
    assert torch.equal(shown(choosing, 7), shown(plain, 7))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"index": 5}, r"must lie in 0\.\.4"),
        ({"index": -1}, "must lie in"),
        ({"index": [0, 5]}, "must lie in"),
        ({"index": [0, 1, 2]}, "one number or 2"),
        ({"index": 1.0}, "integer"),
        ({"index": True}, "integer"),
        ({"index": "3"}, "integer"),
        ({"case": 1}, "unknown reset options"),
    ],
)
def test_bad_choices_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        begun(num_envs=2).reset(options=options)


def test_what_was_told_of_a_step_stays_as_it_was():
    env = make_single("segarena.envs.rl4seg:EchoEnv", images=pool(), device="cpu")
    env.reset(seed=0, options={"index": 0})
    _, _, _, _, info = env.step(pool().labels[0].numpy())
    env.reset(options={"index": 1})
    env.step(np.zeros(64, int))
    assert info["index"] == 0
    assert info["pixel_reward"].tolist() == np.ones((8, 8)).tolist()


# -- gold masks ----------------------------------------------------------------------------------------------------


def test_gold_masks_are_told_with_their_images():
    env = begun(num_envs=5, sampler="shared")
    nothing = env.info()
    assert not nothing["gold"].any()
    assert nothing["gold_action"].shape == (5, 8, 8)
    assert nothing["gold_action"].dtype == torch.uint8
    masks = pool(2, seed=9).labels
    env.set_gold(torch.tensor([3, 1]), masks)
    env.reset(options={"index": [0, 1, 2, 3, 3]})
    info = env.info()
    assert info["gold"].tolist() == [False, True, False, True, True]
    assert torch.equal(info["gold_action"][[1, 3, 4]], masks[[1, 0, 0]])
    assert not info["gold_action"][[0, 2]].any()
    assert not info["pixel_reward"].any()
    env.set_gold(torch.tensor([0]), masks[:1])
    assert env.info()["gold"].tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("index", "masks", "match"),
    [
        (torch.tensor([1, 1]), torch.zeros(2, 8, 8, dtype=torch.uint8), "each once"),
        (torch.tensor([1.0]), torch.zeros(1, 8, 8, dtype=torch.uint8), "int64"),
        (torch.tensor([5]), torch.zeros(1, 8, 8, dtype=torch.uint8), r"images in 0\.\.4"),
        (torch.tensor([1]), torch.zeros(1, 8, 9, dtype=torch.uint8), r"uint8 \(1, 8, 8\)"),
        (torch.tensor([1]), torch.zeros(1, 8, 8), "uint8"),
        (torch.tensor([1]), torch.full((1, 8, 8), 3, dtype=torch.uint8), "label 3"),
    ],
)
def test_gold_masks_that_do_not_fit_are_refused(index, masks, match):
    with pytest.raises(ValueError, match=match):
        begun().set_gold(index, masks)


# -- the rest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"sampler": "per_env"}, {"sampler": "shared"}, {"sampler": "shared", "group": 2}])
def test_a_restored_environment_shows_and_tells_the_same(settings):
    env, other = (begun(num_envs=4, seed=seed, **settings) for seed in (0, 50))
    shown(env, 3)
    env.step(drawn(env))
    other.load_state(env.state())
    for name, value in env.info().items():
        assert torch.equal(value, other.info()[name]), name
    env_ids = torch.arange(4)
    assert str(env.episode_info(env_ids)) == str(other.episode_info(env_ids))
    np.testing.assert_array_equal(env.render(), other.render())
    for one in (env, other):
        one.reset()
    assert torch.equal(shown(env, 12), shown(other, 12))


def test_pictures_have_one_size_and_show_mask_reward_and_truth():
    env = begun(num_envs=2, render_mode="rgb_array")
    before = env.render(0)
    assert before.shape == (256, 4 * 256 + 3 * 4, 3)
    env.step(OraclePolicy()(env))
    after = env.render(0)
    assert after.shape == before.shape
    panels = [after[:, start : start + 256] for start in range(0, after.shape[1], 260)]
    assert not np.array_equal(panels[0], panels[1])
    assert np.array_equal(panels[0], before[:, :256]), "the image"
    assert (panels[3] != panels[0]).any(), "the truth"
    blind = begun(pool(labels=False), reward="anatomical")
    assert blind.render().shape == (256, 3 * 256 + 2 * 4, 3)


def test_the_truth_can_be_kept_to_oneself():
    env = begun(expose_truth=False)
    told = env.advance(torch.zeros_like(env.mask)).ended.episode_info[0]
    assert set(told) == {"case_id", "view", "instant", "spacing_mm"}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"reward": "accurracy"},
            "reward is 'accurracy' but must be one of .*'anatomical' or a list of them; did you mean 'accuracy'",
        ),
        ({"reward": []}, "reward is empty"),
        ({"sampler": "mine"}, "sampler is 'mine'"),
        ({"group": 0}, "group is 0"),
        ({"rewards": "dice"}, "unknown argument 'rewards'; did you mean 'reward'"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"images": pool(labels=False)}, "reward 'pixel_accuracy' needs labels, which"),
        ({"images": 3}, "images is 3 but must be an ImagePool"),
        ({"horizon": 3}, "unknown argument 'horizon'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        EchoEnv(**{"images": pool(), "device": "cpu", **settings})


def test_images_that_do_not_fit_are_refused():
    good = pool()
    for change, match in (
        ({"images": good.images.float()}, "images are torch.float32"),
        ({"images": good.images[:0]}, "N at least 1"),
        ({"labels": good.labels[:, 1:]}, "labels are"),
        ({"labels": good.labels + 2}, "labels reach 4"),
        ({"images": good.images.expand(-1, 2, -1, -1)}, "images have 2 channels but 1 is needed"),
    ):
        with pytest.raises(ValueError, match=match):
            EchoEnv(images=ImagePool(**{**vars(good), **change}), device="cpu")


def test_the_default_is_a_phantom_of_64_pixels():
    env = gym.make("RL4Seg-Echo-v0", device="cpu")
    assert env.observation_space.shape == (1, 64, 64)
    assert env.action_space.nvec.tolist() == [3] * 64 * 64
    assert len(env.unwrapped.batched.pool) == 200


def test_the_data_of_a_split_and_a_scanner_can_be_chosen():
    few = PhantomPatients(train=2, val=1, test=1, pred=3)
    pools = {
        (vendor, split): EchoEnv(vendor=vendor, split=split, size=32, phantom_patients=few, device="cpu").pool
        for vendor in ("a", "b")
        for split in ("train", "pred")
    }
    assert [len(images) for images in pools.values()] == [8, 12, 8, 12]
    names = [name for images in pools.values() for name in images.ids]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="split is 'tset'"):
        EchoEnv(split="tset", phantom_patients=few)
    with pytest.raises(FileNotFoundError):
        EchoEnv(data="/nowhere/CAMUS")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_on_the_device_never_waits_for_it(tmp_path):
    save_network(tmp_path / "r.safetensors", RewardNet(classes=3, init_channels=2))
    env = EchoEnv(
        images=pool(7, 32),
        device="cuda",
        num_envs=4,
        sampler="shared",
        reward=["pixel_accuracy", "reward_net"],
        reward_net=str(tmp_path / "r.safetensors"),
    )
    env.seed(range(4))
    env.reset()
    env.step(env.truth())
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            env.reset()
            mask = torch.zeros_like(env.mask) + env.info()["gold_action"]
            env.step(mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""APGA-MURA-v0: known rewards, one call of the classifier, what is refused (docs/apga.md, Method 11 to 13)."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from apga_toys import OPTIMUM, Linear, pool, toy
from gymnasium.utils.env_checker import check_env as gymnasium_check
from segarena.classifiers.xray import PACKAGED, XrayClassifier, probabilities
from segarena.common.networks import load_network, save_network
from segarena.datasets.xray.images import PhantomStudies, XrayConfig, load_xrays
from segarena.envs.adapters import make_batch, make_single
from segarena.envs.apga import APGAEnv
from segarena.evaluation.classification import image_metrics
from segarena.testing import check_env_contract
from stable_baselines3.common.env_checker import check_env as sb3_check
from xray_toys import fake_hips, fake_mura

SMALL = {"size": 32, "phantom_studies": PhantomStudies(train=4), "grid": 4}


@pytest.mark.parametrize(
    ("mask", "gap", "reward"),
    [
        ([1, 0, 0, 1], 1.5, OPTIMUM),
        ([1, 0, 0, 0], 0.772664, 0.647664),
        ([1, 1, 1, 1], 1.111849, 0.611849),
        ([0, 0, 0, 0], 0.0, 0.0),
    ],
)
def test_the_reward_of_the_linear_toy_is_as_computed_by_hand(mask, gap, reward):
    env = toy()
    found, terminated, truncated = env.step(torch.tensor([mask]))
    torch.testing.assert_close(found, torch.tensor([reward]), atol=1e-5, rtol=0)
    info = env.info()
    torch.testing.assert_close(info["gap"], torch.tensor([gap]), atol=1e-5, rtol=0)
    torch.testing.assert_close(info["loss_orig"], torch.tensor([0.201413]), atol=1e-5, rtol=0)
    torch.testing.assert_close(info["loss_adv"] - info["loss_orig"], info["gap"], atol=1e-6, rtol=0)
    assert info["mask_area"].item() == sum(mask) / 4
    assert (terminated.tolist(), truncated.tolist()) == ([True], [False])


def test_erased_and_kept_parts_are_seen_as_they_should_be():
    images = (
        torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8).repeat_interleave(16, 0).repeat_interleave(16, 1)[None]
    )
    seen = []

    def net(x):
        seen.append((x[:, 0, ::16, ::16] * 255).round().tolist())
        return torch.zeros(len(x), 2)

    class Spy(torch.nn.Module):
        forward = staticmethod(net)

    env = toy(2, pool(images=images), classifier=Spy(), reward_mode="contrast")
    env.step(torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]]))
    adv, untouched, aid, nothing = seen[-1]
    assert adv == [[0, 20], [0, 40]]
    assert aid == [[10, 0], [30, 0]]
    assert untouched == [[10, 20], [30, 40]]
    assert nothing == [[0, 0], [0, 0]]


def test_to_select_nothing_or_to_keep_everything_changes_nothing():
    for mode, action in (("adversarial", 0), ("cooperative", 1)):
        env = toy(3, pool(3, labels=[0, 1, 1]), reward_mode=mode, area_coef=0.0)
        reward, _, _ = env.step(torch.full((3, 4), action))
        torch.testing.assert_close(reward, torch.zeros(3), atol=1e-6, rtol=0)


def test_area_and_variation_cost_what_they_should_and_the_gap_is_cut():
    env = toy(area_coef=0.5, tv_coef=0.1, reward_clip=1.0)
    reward, _, _ = env.step(torch.tensor([[1, 0, 0, 1]]))
    terms = {name: term.item() for name, term in env.reward_terms.items()}
    assert terms == pytest.approx({"gap": 1.0, "area": -0.25, "tv": -0.1})  # four differences over four cells
    assert reward.item() == pytest.approx(0.65)
    assert env.info()["gap"].item() == pytest.approx(1.5, abs=1e-5)


def test_sequential_rewards_add_up_to_that_of_the_last_mask():
    env = toy(action_mode="sequential", horizon=5)
    paid = []
    for action in (0, 3, 4):
        reward, terminated, truncated = env.step(torch.tensor([action]))
        paid.append(reward.item())
    assert paid == pytest.approx([0.647664, 0.602336, 0.0], abs=1e-5)
    assert terminated.item()
    assert not truncated.item()
    for mode in ("cooperative", "contrast"):
        grown, at_once = (toy(action_mode=one, reward_mode=mode) for one in ("sequential", "patch"))
        total = sum(grown.step(torch.tensor([action]))[0] for action in (1, 2, 4))
        torch.testing.assert_close(total, at_once.step(torch.tensor([[0, 1, 1, 0]]))[0])


def test_a_sequential_episode_shows_its_mask_and_masks_what_is_selected():
    env = toy(action_mode="sequential", horizon=2)
    assert env.observe().shape == (1, 2, 32, 32)
    _, terminated, truncated = env.step(torch.tensor([1]))
    assert env.observe()[0, 1, ::16, ::16].tolist() == [[0, 255], [0, 0]]
    assert env.action_masks().tolist() == [[True, False, True, True, True]]
    assert not (terminated | truncated).item()
    assert env.step(torch.tensor([1]))[2].item()


def test_one_call_of_the_classifier_a_step_and_plain_images_are_asked_once():
    for mode in ("adversarial", "cooperative", "contrast"):
        env = toy(4, pool(4), reward_mode=mode, log_aid=True, sampler="shared")
        for _ in range(3):
            before = env.classifier.calls
            env.advance(torch.zeros(4, 4))
            assert env.classifier.calls == before + 1
        assert {"loss_adv", "loss_aid", "prob_aid"} <= env.info().keys()


def test_another_classifier_is_asked_anew():
    env = toy(2, pool(2))
    other = Linear().eval()
    with torch.no_grad():
        other.weight.mul_(2)
    env.set_classifier(other)
    z = torch.tensor(-1 + 2 * 2.5)
    torch.testing.assert_close(env.info()["prob_orig"], z.sigmoid().expand(2))
    with torch.no_grad():
        other.weight.mul_(0.5)
    torch.testing.assert_close(env.info()["prob_orig"], z.sigmoid().expand(2))
    env.classifier_changed()
    torch.testing.assert_close(env.info()["prob_orig"], torch.tensor(1.5).sigmoid().expand(2))
    grown, fresh = (toy(action_mode="sequential") for _ in range(2))
    grown.step(torch.tensor([0]))
    grown.set_classifier(other.train())
    fresh.set_classifier(other)
    assert other.training, "it stays in the mode it is in"
    later = grown.step(torch.tensor([3]))[0]
    whole = fresh.step(torch.tensor([0]))[0] + fresh.step(torch.tensor([3]))[0]
    torch.testing.assert_close(later, whole - fresh.preview(torch.tensor([[1, 0, 0, 0]]).view(1, 1, 2, 2).bool()))


def test_a_preview_is_what_a_step_pays_and_moves_nothing():
    env = toy(2, pool(2, labels=[0, 1]), tv_coef=0.1)
    actions = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0]])
    before = env.state()
    worth = env.preview(actions.view(2, 1, 2, 2).bool(), torch.tensor([0, 1]))
    assert torch.equal(env.cells, before["cells"])
    torch.testing.assert_close(env.step(actions)[0], worth)


def test_binary_actions_may_be_floats_that_are_0_or_1():
    env = toy()
    assert env.actions_from(np.array([[0.0, 1.0, 1.0, 0.0]], np.float32)).tolist() == [[0, 1, 1, 0]]
    with pytest.raises(ValueError, match=r"0\.5.* is outside MultiBinary"):
        env.actions_from(np.array([[0.0, 0.5, 1.0, 0.0]]))


def test_a_batch_has_one_reward():
    apart, together = (toy(2, pool(2, labels=[0, 1]), reward_level=level) for level in ("sample", "batch"))
    actions = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0]])
    reward = apart.step(actions)[0]
    torch.testing.assert_close(together.step(actions)[0], reward.mean().expand(2))


@pytest.mark.parametrize(("fill", "seen"), [("zero", 0.0), ("mean", 0.7), ("blur", None), ("noise", None)])
def test_what_is_erased_is_filled(fill, seen):
    env = toy(fill=fill)
    filling = env.filling[0, 0]
    assert 0 <= filling.min() <= filling.max() <= 1
    if seen is not None:
        torch.testing.assert_close(filling, torch.full((32, 32), seen))
    else:
        assert filling.std() > 0.05
        assert (filling - env.pool.at(env.index)[0, 0]).abs().max() > 0.05


def test_many_environments_are_many_single_ones():
    settings = {**SMALL, "device": "cpu", "log_aid": True}
    vector = make_batch("segarena.envs.apga:APGAEnv", 8, **settings)
    vector.reset(seed=3)
    actions = vector.action_space.sample()
    _, rewards, _, _, infos = vector.step(actions)
    for n in range(8):
        single = make_single("segarena.envs.apga:APGAEnv", **settings)
        single.reset(seed=3 + n)
        _, reward, _, _, info = single.step(actions[n])
        assert reward == pytest.approx(rewards[n], abs=1e-5)
        assert info["index"] == infos["final_info"]["index"][n]


@pytest.mark.parametrize("fill", ["mean", "blur", "noise"])
def test_masks_and_fills_of_many_are_those_of_single_ones_bit_for_bit(fill):
    settings = {**SMALL, "device": "cpu", "action_mode": "beta", "blur_sigma_px": 2.0, "fill": fill}
    actions = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    many = APGAEnv(num_envs=4, **settings)
    many.seed(range(4))
    many.reset()
    many.step(actions)
    for n in range(4):
        single = APGAEnv(num_envs=1, images=many.pool, **settings)
        single.seed([n])
        single.reset()
        single.step(actions[n : n + 1])
        assert single.index.item() == many.index[n].item()
        assert torch.equal(single.filling[0], many.filling[n])
        assert torch.equal(single.mask[0], many.mask[n])


@pytest.mark.parametrize(
    "settings",
    [
        {"action_mode": "pixel", "fill": "noise", "reward_kind": "logit"},
        {"action_mode": "box", "reward_mode": "contrast", "reward_kind": "prob"},
        {"action_mode": "beta", "blur_sigma_px": 2.0, "fill": "blur"},
        {"action_mode": "sequential", "reward_mode": "cooperative", "horizon": 4},
    ],
    ids=lambda settings: settings["action_mode"],
)
def test_every_action_mode_keeps_the_contract(settings):
    check_env_contract(APGAEnv, num_envs=2, steps=10, **{**SMALL, **settings})


def test_the_overlap_with_the_lesion_is_known_on_phantoms():
    roi = torch.zeros(2, 32, 32, dtype=torch.bool)
    roi[0, :16] = True
    env = toy(2, pool(2, roi=roi))
    env.reset(options={"index": [0, 1]})
    env.step(torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0]]))
    assert env.info()["roi_iou"].tolist() == [0.5, 0.0]
    assert "roi_iou" not in toy().info()


def test_pictures_show_image_mask_erased_and_kept():
    env = toy(1, pool(roi=torch.ones(1, 32, 32, dtype=torch.bool)), render_mode="rgb_array")
    env.step(torch.tensor([[1, 0, 0, 0]]))
    picture = env.render()
    assert picture.shape == (256, 4 * 256 + 3 * 4, 3)
    assert not picture[10, 2 * 260 + 10].any(), "erased"
    assert not picture[200, 3 * 260 + 200].any(), "not kept"
    assert (picture[10, 3 * 260 + 10] == 255).all()
    assert env.caption(0) == "limb_0 (abnormal): loss orig 0.201, adv 0.974, area 0.25"
    assert [text for _, text in env.legend()][:2] == ["selected", "box around the lesion"]
    env.shows_truth = False
    assert not np.array_equal(env.render(), picture)
    assert env.caption(0).startswith("limb_0: ")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"grid": 14}, r"grid is 14 but must divide size, 32: choose one of \[1, 2, 4"),
        ({"horizon": 3}, "horizon is 3 but an episode of action_mode 'patch' is one step"),
        ({"action_mode": "sequential", "reward_level": "batch"}, "do not end together"),
        ({"group": 2}, "needs sampler='shared'"),
        ({"blur_sigma_px": 1.0}, "masks of action_mode 'patch' are hard"),
        ({"area_coef": -1.0}, "area_coef is -1.0"),
        ({"reward_clip": 0.0}, "reward_clip is 0.0"),
        ({"action_mode": "circle"}, "action_mode is 'circle'"),
        ({"body_part": "elbow"}, "belong to MURA"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        gym.make("APGA-MURA-v0", **{**SMALL, **settings})


def test_a_classifier_that_does_not_fit_is_refused(tmp_path):
    save_network(tmp_path / "six.safetensors", XrayClassifier("small_cnn", 1, 6))
    with pytest.raises(ValueError, match="out_channels = 6 but 2 is needed"):
        gym.make("APGA-MURA-v0", classifier=str(tmp_path / "six.safetensors"), **SMALL)
    with pytest.raises(ValueError, match="must give"):
        toy(classifier=XrayClassifier("small_cnn", 1, 6))


def test_a_reward_that_is_no_number_names_the_images():
    broken = Linear().eval()
    env = toy(2, pool(2), classifier=broken)
    with torch.no_grad():
        broken.weight[1] = torch.nan
    with pytest.raises(ValueError, match=r"reward of 2 images is not finite: limb_., limb_."):
        env.step(torch.zeros(2, 4))


@pytest.mark.parametrize("source", ["mura", "hips"])
def test_both_checkers_pass_on_radiographs_in_files(source, tmp_path):
    if source == "mura":
        folder = fake_mura(tmp_path, parts=("XR_ELBOW", "XR_WRIST"))
        settings = {"data": str(folder), "body_part": "wrist", "split": "test"}
    else:
        settings = {"csv": str(fake_hips(tmp_path)), "n_classes": 6}
    file = tmp_path / "classifier.safetensors"
    save_network(file, XrayClassifier("small_cnn", 1, settings.get("n_classes", 2)))
    settings |= {"size": 36, "grid": 4, "classifier": str(file), "device": "cpu"}
    for check in (gymnasium_check, sb3_check):
        check(gym.make("APGA-MURA-v0", **settings).unwrapped)
    env = APGAEnv(num_envs=4, **settings)
    env.seed(range(4))
    env.reset()
    assert set(env.pool.parts) == {"wrist" if source == "mura" else env.pool.parts[0]}
    assert len(env.pool.classes) == settings.get("n_classes", 2)
    assert env.info()["label"].tolist() == env.pool.labels[env.index].tolist()
    assert env.advance(torch.zeros(4, 16)).reward.abs().max() < 1e-5, "nothing was selected"
    assert env.advance(torch.ones(4, 16)).reward.abs().max() > 0.1, "all was"


def test_the_packaged_classifier_is_as_good_as_its_card_says():
    """On the 120 first of the 500 test images: the card's accuracy lies in a 99.9 % interval around the one found."""
    card = PACKAGED.with_suffix(".md").read_text(encoding="utf-8")
    said = json.loads(card.partition("```json\n")[2].partition("```")[0])
    net = load_network(PACKAGED, XrayClassifier, network="small_cnn", in_channels=1, out_channels=2)
    assert f"{sum(value.numel() for value in net.parameters()):,} parameters" in card
    test = load_xrays(XrayConfig(), "test[:60]")
    found = image_metrics(probabilities(net, test.images), test.labels)
    spread = 3.3 * (said["accuracy"] * (1 - said["accuracy"]) / len(test)) ** 0.5
    assert len(test) == 120
    assert abs(found["accuracy"] - said["accuracy"]) <= spread
    assert found["auroc"] > 0.97


def test_the_packaged_classifier_knows_phantoms():
    env = APGAEnv(num_envs=64, phantom_studies=PhantomStudies(train=40), device="cpu")
    env.seed(range(64))
    env.reset()
    assert (env.info()["prob_orig"] > 0.5).float().mean() > 0.9


def test_the_number_of_phantoms_may_be_a_mapping_as_in_yaml():
    assert len(APGAEnv(size=32, grid=4, phantom_studies={"train": 4}, device="cpu").pool) == 8
    with pytest.raises(ValueError, match=r"phantom_studies\.train is -1"):
        APGAEnv(phantom_studies={"train": -1})


def test_masked_images_are_judged_by_their_own_statistics():
    torch.manual_seed(0)
    net = XrayClassifier("small_cnn", 1, 2, split_bn=True).eval()
    net.body[1].masked_running_mean += 0.3
    env = toy(classifier=net, log_aid=True)
    x, a = env.pool.at(env.index), torch.zeros(1, 1, 32, 32)
    a[..., :16, :16] = 1
    env.step(torch.tensor([[1, 0, 0, 0]]))
    for view, seen, masked in (("orig", x, False), ("adv", x * (1 - a), True), ("aid", x * a, True)):
        with torch.no_grad():
            expected = torch.nn.functional.cross_entropy(net(seen, masked=masked), torch.tensor([1]))
        torch.testing.assert_close(env.info()[f"loss_{view}"][0], expected)


def test_another_classifier_before_the_first_cell_begins_at_nothing():
    changed, fresh = (toy(action_mode="sequential", reward_mode="cooperative") for _ in range(2))
    changed.set_classifier(Linear().eval())
    torch.testing.assert_close(changed.step(torch.tensor([0]))[0], fresh.step(torch.tensor([0]))[0])

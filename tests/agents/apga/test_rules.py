"""Reference policies of APGA-MURA-v0 (docs/apga.md, Method 14)."""

import pytest
import torch
from apga_toys import OPTIMUM, pool, toy
from segarena.agents.apga.rules import POLICIES, MaskPolicy, box_masks, cutout_boxes
from segarena.agents.policy import play
from segarena.datasets.xray.images import PhantomStudies
from segarena.envs.apga import APGAEnv


def returns(name, num_envs=2, images=None, **settings):
    env = toy(num_envs, images, **settings)
    return play(env, POLICIES[name].policy(env, 0)).returns


def test_brute_force_finds_the_optimum_in_one_step_and_cell_by_cell():
    for mode in ("patch", "sequential"):
        assert returns("brute_force", action_mode=mode).tolist() == pytest.approx([OPTIMUM] * 2, abs=1e-5)
    env = toy(grid=4)
    with pytest.raises(ValueError, match=r"plays with action_mode=.* grid=2 or 3 or 1"):
        POLICIES["brute_force"].policy(env, 0)


def test_no_other_policy_beats_brute_force():
    for name in POLICIES.keys() - {"gradcam"}:
        assert (returns(name) <= OPTIMUM + 1e-5).all(), name


def test_nothing_and_all_select_nothing_and_all():
    assert returns("none").tolist() == [0.0, 0.0]
    assert returns("all").tolist() == pytest.approx([0.611849] * 2, abs=1e-5)
    assert returns("all", action_mode="sequential").tolist() == pytest.approx([0.611849] * 2, abs=1e-5)


def test_boxes_follow_the_law_of_cutout():
    boxes = cutout_boxes(20_000, 224, torch.Generator().manual_seed(0))
    share = boxes[:, 2:].prod(dim=1) / 224**2
    assert share.mean() == pytest.approx(0.146, abs=0.005)
    assert share.median() == pytest.approx(0.109, abs=0.005)
    found = share.quantile(torch.tensor([0.05, 0.25, 0.75, 0.95]))
    torch.testing.assert_close(found, torch.tensor([0.007, 0.043, 0.211, 0.422]), atol=0.01, rtol=0)
    assert (boxes[:, :2] + boxes[:, 2:] <= 224).all()
    assert (boxes >= 0).all()
    masks = box_masks(torch.tensor([[1, 0, 2, 3], [0, 0, 0, 0]]), 4)
    assert masks[0, 0].int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert not masks[1].any()


def test_random_masks_have_their_share_and_their_seed():
    env = toy(500, pool(4), grid=8)
    policies = [POLICIES[name].policy(env, seed) for name, seed in (("random_mask", 0), ("random_mask", 1))]
    one, other = (policy(env) for policy in policies)
    assert one.float().mean() == pytest.approx(0.1, abs=0.01)
    assert not torch.equal(one, other)
    assert torch.equal(one, POLICIES["random_mask"].policy(env, 0)(env))
    pixels = toy(2, action_mode="pixel")
    assert POLICIES["pixel_dropout"].policy(pixels, 0)(pixels).float().mean() == pytest.approx(0.54, abs=0.03)


def test_saliency_finds_the_steepest_cell():
    env = toy(1, grid=2)
    assert POLICIES["saliency_topk"].policy(env, 0)(env).tolist() == [[1, 0, 0, 0]]  # 2 > 1.25, of the greys' weights


def test_the_foreground_is_what_is_brighter():
    env = toy(1)
    assert POLICIES["foreground"].policy(env, 0)(env).tolist() == [[1, 0, 0, 1]]


def test_a_mask_is_kept_for_its_episode_and_each_episode_has_its_own():
    env = toy(2, pool(2), action_mode="sequential", horizon=6)
    asked = []

    def rule(env):
        asked.append(env.t.tolist())
        masks = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
        masks[:, :, :16, : 16 * (1 + (len(asked) > 1))] = True
        return masks

    policy = MaskPolicy(rule)
    actions = []
    for _ in range(5):
        actions.append(policy(env).tolist())
        env.advance(torch.tensor(actions[-1]))
    assert [one[0] for one in actions] == [0, 4, 0, 1, 4]
    assert asked == [[0, 0], [0, 0]]


def test_every_policy_plays_in_every_mode_it_fits_on_phantoms():
    for mode in ("patch", "pixel", "box", "beta", "sequential"):
        env = APGAEnv(
            action_mode=mode, num_envs=3, device="cpu", grid=4, size=32, phantom_studies=PhantomStudies(train=4)
        )
        env.seed(range(3))
        for row in POLICIES.values():
            if row.fits(env):
                env.reset()
                actions = row.policy(env, 0)(env)
                env.step(env.actions_from(actions))

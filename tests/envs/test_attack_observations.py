"""The environments of RP-PGD: what the agent sees (docs/rp-pgd.md, Method 21)."""

import torch
from attack_games import actions, begun
from segarena.attacks.regions import BOUNDARY, FALSE, TRUE


def test_the_summary_says_how_the_attack_stands():
    env = begun(horizons=(4,))
    start = env.observe()
    valid = env.core.valid.flatten(1).sum(dim=1)
    right = (env.core.right & env.core.valid).flatten(1).sum(dim=1)
    assert torch.allclose(start[:, :3], torch.tensor([0, 2 / 7, 255 * 0.08 / 16]))
    assert torch.allclose(start[:, 3], right / valid)
    assert torch.allclose(start[:, 3:8].sum(dim=1), torch.ones(4))
    assert not start[:, 4:6].any(), "nothing has changed yet"
    assert torch.allclose(start[:, 21], env.core.accuracy())
    assert torch.allclose(start[:, 22], env.now["miou"])
    assert not start[:, 23:26].any()
    assert (start[:, 26] > 0.3).all(), "classes with a prototype"
    assert not start[:, 29:31].any()
    assert not start[:, 32:].any()
    env.step(actions(env, step_size=1.0, region_mean=0.25, boundary_wrong=0.5))
    after = env.observe()
    assert torch.allclose(after[:, 0], torch.tensor(0.25))
    group = (env.core.regions == BOUNDARY).flatten(1)
    loss = env.core.losses.flatten(1)
    expected = (loss * group).sum(dim=1) / group.sum(dim=1).clamp(min=1) / 5
    assert torch.allclose(after[:, 9], expected.clamp(max=2), atol=1e-5)
    assert torch.allclose(after[:, 23], env.begun_at - env.now["miou"])
    assert torch.allclose(after[:, 24] - after[:, 25], start[:, 21] - after[:, 21], atol=1e-6)
    assert (after[:, 30] > 0.5).all(), "at the edge of the ball"
    assert torch.allclose(after[:, 33:], torch.tensor([3, 0.25, 0, 0, 1, 0.75, 1]), atol=1e-5)
    sign = env.core.gradient.sign()
    env.step(actions(env))
    cosine = torch.nn.functional.cosine_similarity(sign.flatten(1), env.core.gradient.sign().flatten(1))
    assert torch.allclose(env.observe()[:, 32], cosine, atol=1e-5)


def test_without_features_the_prototypes_are_not_seen():
    env = begun(feature_layer=None)
    env.step(actions(env, inter=1.0))
    assert not env.observe()[:, 26:29].any()
    assert not env.info()["loss/inter"].any()


def test_maps_show_where():
    env = begun(obs_mode="map", map_size=16, horizons=(3,))
    seen = env.observe()
    assert seen["map"].shape == (4, 3 * 2 + 8, 16, 16)
    assert torch.allclose(seen["map"][:, :2], env.core.images)
    assert not seen["map"][:, 2:6].any()
    env.step(actions(env, step_size=0.5))
    maps = env.observe()["map"]
    assert torch.allclose(maps[:, 2:4], (env.core.adversarial - env.core.images) / 0.08, atol=1e-6)
    assert torch.allclose(maps[:, 4:6], env.core.gradient.sign())
    chance = env.core.logits.softmax(dim=1).gather(1, env.core.targets[:, None])[:, 0] * env.core.valid
    assert torch.allclose(maps[:, 6], chance, atol=1e-6)
    for channel, where in ((9, TRUE), (10, BOUNDARY), (11, FALSE)):
        assert torch.equal(maps[:, channel] > 0, env.core.regions == where)
    assert torch.equal(maps[:, 12] > 0, env.core.right & env.core.valid)
    assert torch.equal(maps[:, 13] > 0, env.core.valid)
    assert ((maps[:, 8] >= 0) & (maps[:, 8] <= 1)).all()

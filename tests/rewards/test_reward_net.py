"""Pixel rewards: those that read labels, and the learned one."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from segarena.common.networks import load_network, save_network
from segarena.common.runs import Run
from segarena.datasets.images import ImagePool
from segarena.evaluation.metrics import classification_metrics
from segarena.rewards import reward_net as module
from segarena.rewards.reward_data import Triplets
from segarena.rewards.reward_net import (
    RewardNet,
    RewardNetConfig,
    fit_temperature,
    reward_scores,
    train_reward_net,
)
from segarena.rewards.segmentation import accuracy, accuracy_map, dice_map, min_fusion, pixel_accuracy

SIZE = 32
DICE = partial(dice_map, classes=(1, 2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_masks(number, seed=0, classes=3):
    return torch.randint(classes, (number, SIZE, SIZE), generator=generator(seed), dtype=torch.uint8)


def hearts(number, seed=0):
    """Images whose grey says the label, uint8, and their labels: a square of LV in a square of MYO, anywhere."""
    draw, labels = generator(seed), torch.zeros(number, SIZE, SIZE, dtype=torch.uint8)
    for label in labels:
        y, x = torch.randint(12, (2,), generator=draw).tolist()
        label[y : y + 18, x : x + 18] = 2
        label[y + 5 : y + 18, x + 5 : x + 13] = 1
    noise = torch.randint(-25, 26, labels.shape, generator=draw)
    return (60 + 60 * labels.int() + noise).clamp(0, 255).byte(), labels


def pool_of(images):
    number = len(images)
    names = [f"case{row}" for row in range(number)]
    classes = ("background", "lv", "myo")
    return ImagePool(images[:, None], None, names, names, {}, torch.ones(number, 2).double(), classes, "phantom")


def toy_triplets(number, seed=0):
    """Hearts against the same hearts moved, each image once."""
    images, good = hearts(number, seed)
    shifts = torch.randint(1, 5, (number,), generator=generator(seed + 1)).tolist()
    bad = torch.stack([mask.roll((shift, -shift), (0, 1)) for mask, shift in zip(good, shifts, strict=True)])
    return pool_of(images), Triplets(torch.arange(number), good, bad, torch.zeros(number, dtype=torch.uint8))


def small_net(seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RewardNet(classes=3, init_channels=8, **settings)


def train(folder, seed=0, number=24, **settings):
    images, triplets = toy_triplets(number)
    rows = torch.arange(number)
    net, run = small_net(), Run(folder)
    config = RewardNetConfig(**{"epochs": 2, "batch_size": 8} | settings)
    try:
        scalars = train_reward_net(net, triplets.take(rows[8:]), triplets.take(rows[:8]), images, config, run, seed)
    finally:
        run.close()
    return net, scalars, images, triplets.take(rows[:8])


# -- rewards that know the labels ----------------------------------------------------------------------------------


def test_the_oracle_earns_one_and_a_random_policy_one_third():
    labels = random_masks(40)
    for reward in (pixel_accuracy, accuracy_map, accuracy, DICE):
        assert torch.equal(reward(labels, labels), torch.ones_like(reward(labels, labels)))
    for reward in (pixel_accuracy, accuracy_map, accuracy):
        assert float(reward(random_masks(40, seed=1), labels).mean()) == pytest.approx(1 / 3, abs=0.01)


def test_each_reward_has_its_known_answer():
    labels = torch.tensor([[[0, 1, 1], [2, 2, 2]]], dtype=torch.uint8)
    actions = torch.tensor([[[0, 1, 2], [2, 2, 0]]], dtype=torch.uint8)
    right = torch.tensor([[[1.0, 1, 0], [1, 1, 0]]])
    assert torch.equal(pixel_accuracy(actions, labels), right)
    torch.testing.assert_close(accuracy(actions, labels), torch.full((1, 1, 1), 4 / 6))
    torch.testing.assert_close(accuracy_map(actions, labels), torch.full((1, 2, 3), 4 / 6))
    torch.testing.assert_close(DICE(actions, labels), torch.full((1, 2, 3), 2 / 3))  # LV 2/3, MYO 4/6
    fused = min_fusion(right, accuracy(actions, labels), torch.full((1, 2, 3), 0.9))
    torch.testing.assert_close(fused, right * 4 / 6)
    assert all(reward(actions, labels).dtype == torch.float32 for reward in (pixel_accuracy, accuracy, DICE))


def test_the_maps_of_an_image_do_not_depend_on_the_others():
    actions, labels = random_masks(6), random_masks(6, seed=1)
    for reward in (pixel_accuracy, accuracy_map, accuracy, DICE):
        torch.testing.assert_close(reward(actions, labels)[2:3], reward(actions[2:3], labels[2:3]))


def test_masks_that_do_not_fit_are_refused():
    for reward in (pixel_accuracy, accuracy_map, accuracy, DICE):
        with pytest.raises(ValueError, match=r"actions are \[2, 32, 32\] and labels \[3, 32, 32\]"):
            reward(random_masks(2), random_masks(3))
    with pytest.raises(ValueError, match="at least one"):
        min_fusion()


# -- the network ---------------------------------------------------------------------------------------------------


def test_the_networks_size_is_the_papers():
    assert sum(p.numel() for p in RewardNet(classes=3).parameters()) == 7_781_473
    assert RewardNet(classes=3, encoding="onehot").unet.in_channels == 4


@pytest.mark.parametrize("encoding", ["raw", "onehot"])
def test_image_and_every_label_reach_the_reward(encoding):
    net, x, a = small_net(encoding=encoding), torch.rand(1, 1, SIZE, SIZE, generator=generator()), random_masks(1)
    r = net(x, a)
    assert r.shape == (1, SIZE, SIZE)
    assert bool(((r > 0) & (r < 1)).all())
    assert not torch.equal(net(1 - x, a), r)
    for label in range(3):
        assert not torch.equal(net(x, torch.full_like(a, label)), net(x, torch.full_like(a, (label + 1) % 3)))


def test_one_hot_channels_are_the_classes():
    net, seen = small_net(encoding="onehot"), []
    net.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, a = torch.rand(2, 1, SIZE, SIZE), random_masks(2)
    net.logits(x, a)
    torch.testing.assert_close(seen[0], torch.cat([x, F.one_hot(a.long(), 3).movedim(-1, 1).float()], dim=1))


def test_the_reward_of_an_image_does_not_depend_on_its_batch():
    net, x, a = small_net(), torch.rand(5, 1, SIZE, SIZE, generator=generator()), random_masks(5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert not net.training
    torch.testing.assert_close(net(x, a)[1:2], net(x[1:2], a[1:2]))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_temperature_counts_for_the_uncertainty_only():
    net, x, a = small_net(), torch.rand(2, 1, SIZE, SIZE), random_masks(2)
    r, z = net(x, a), net.logits(x, a)
    net.temperature.fill_(4.1778)
    assert torch.equal(net(x, a), r)
    torch.testing.assert_close(net(x, a, calibrated=True), torch.sigmoid(z / 4.1778))


def test_a_network_comes_back_from_its_file(tmp_path):
    net = small_net(encoding="onehot", norm="group")
    net.temperature.fill_(2.5)
    save_network(tmp_path / "r.safetensors", net)
    loaded = load_network(tmp_path / "r.safetensors", RewardNet, classes=3)
    assert (loaded.encoding, loaded.unet.norm, loaded.training) == ("onehot", "group", False)
    x, a = torch.rand(1, 1, SIZE, SIZE), random_masks(1)
    assert torch.equal(loaded(x, a, calibrated=True), net(x, a, calibrated=True))


# -- temperature ---------------------------------------------------------------------------------------------------


def test_the_applied_temperature_is_that_of_the_formula():
    """docs/rl4seg.md, Method 6: the paper's program fits sigmoid((2z - 1) / T) but applies sigmoid(z / T)."""
    z = torch.tensor([2.0, 0.0])
    torch.testing.assert_close(torch.sigmoid(z / 4.1778), torch.tensor([0.617446, 0.5]), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        torch.sigmoid((2 * z - 1) / 4.1778), torch.tensor([0.672184, 0.440444]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("true", [0.4, 1.0, 4.1778])
def test_a_known_temperature_is_found(true):
    z = 4 * torch.randn(200_000, generator=generator()) + 1
    targets = torch.bernoulli(torch.sigmoid(z / true), generator=generator(1))
    assert fit_temperature(z, targets) == pytest.approx(true, rel=0.03)


def test_the_temperature_has_the_least_nll_and_the_references_has_not():
    z = 3 * torch.randn(20_000, generator=generator()) + 1
    targets = torch.bernoulli(torch.sigmoid(z / 2), generator=generator(1))
    found, references = fit_temperature(z, targets), fit_temperature(2 * z - 1, targets)
    nll = lambda t: float(F.binary_cross_entropy_with_logits(z / t, targets))  # noqa: E731
    assert nll(found) <= min(nll(found * 1.02), nll(found / 1.02))
    assert references > 1.5 * found
    assert nll(references) > nll(found) + 0.01


def test_perfect_and_useless_logits_end_at_the_limits():
    z = torch.tensor([-3.0, 3.0])
    low, high = module.TEMPERATURES
    assert fit_temperature(z, torch.tensor([0.0, 1.0])) == pytest.approx(low)
    assert fit_temperature(z, torch.tensor([1.0, 0.0])) == pytest.approx(high)
    with pytest.raises(ValueError, match="one shape"):
        fit_temperature(z, torch.zeros(3))
    with pytest.raises(ValueError, match="not empty"):
        fit_temperature(z[:0], z[:0])


# -- training ------------------------------------------------------------------------------------------------------


def test_the_reward_network_learns_to_find_the_wrong_pixels(tmp_path):
    net, scalars, _, _ = train(tmp_path, number=56, epochs=10, learning_rate=1e-2)
    assert scalars["val_auroc"] > 0.9
    images, unseen = toy_triplets(8, seed=100)
    assert reward_scores(net, unseen, images, 8)["auroc"] > 0.9
    with torch.no_grad():
        right = net(images.at(unseen.images), unseen.a_ref).mean()
        wrong = net(images.at(unseen.images), unseen.a_bad)[unseen.a_bad != unseen.a_ref].mean()
    assert float(right) > 0.7 > 0.5 > float(wrong)


def test_the_temperature_is_fitted_on_the_weights_that_are_kept(tmp_path):
    net, scalars, images, val = train(tmp_path, epochs=3)
    assert not net.training
    with torch.no_grad():
        z, e = module.error_logits(net, images, val)
    assert scalars["temperature"] == pytest.approx(fit_temperature(z, e), rel=1e-4)
    assert float(net.temperature) == pytest.approx(scalars["temperature"])
    lines = Run(tmp_path).metrics()
    assert scalars["val_bce"] == min(line["reward_net/val_bce"] for line in lines)
    assert scalars["val_bce"] == pytest.approx(float(F.binary_cross_entropy_with_logits(z, e)), rel=1e-5)
    assert lines[0]["reward_net/n_triplets"] == 16


def test_the_temperature_is_fitted_on_validation_triplets(tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(module, "fit_temperature", lambda z, e: fitted.append((z, e)) or 2.0)
    net, scalars, images, val = train(tmp_path, epochs=0)
    with torch.no_grad():
        z, e = (value.flatten(1).sort(dim=1).values for value in module.error_logits(net, images, val))
    ((found_z, found_e),) = fitted
    torch.testing.assert_close(found_z.sort(dim=1).values, z)
    assert torch.equal(found_e.sort(dim=1).values, e)
    assert scalars["temperature"] == float(net.temperature) == 2.0


def test_auroc_is_that_of_the_pixels():
    net, (images, triplets) = small_net(), toy_triplets(6)
    with torch.no_grad():
        z, e = module.error_logits(net, images, triplets)
    exact = classification_metrics(torch.sigmoid(-z.double()).flatten(), ~e.bool().flatten())["auroc"]
    assert reward_scores(net, triplets, images, 4)["auroc"] == pytest.approx(exact, abs=0.02)
    same = Triplets(triplets.images, triplets.a_ref, triplets.a_ref, triplets.kind)
    assert reward_scores(net, same, images, 4)["auroc"] == 0.5


def test_the_seed_decides_and_nothing_else_does(tmp_path):
    nets = [train(tmp_path / str(number), seed=seed)[0].state_dict() for number, seed in enumerate((0, 0, 1))]
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())
    assert any(not torch.equal(value, nets[2][name]) for name, value in nets[0].items())


def test_training_stops_early_when_told_and_the_rate_falls_on_a_plateau(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "reward_scores", lambda *_: {"bce": 1.0, "auroc": 0.5})
    train(tmp_path / "stopped", epochs=9, early_stop=2)
    assert len(Run(tmp_path / "stopped").metrics()) == 3
    train(tmp_path / "slower", epochs=4, plateau_patience=1)
    rates = [line["reward_net/lr"] for line in Run(tmp_path / "slower").metrics()]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4])


def test_a_tiny_gain_is_a_plateau_and_a_real_one_is_none(tmp_path, monkeypatch):
    for name, factor, last in (("tiny", 1 - 1e-5, 1e-4), ("real", 1 - 1e-3, 1e-3)):
        scores = iter([{"bce": 0.5 * factor**epoch, "auroc": 0.5} for epoch in range(4)])
        monkeypatch.setattr(module, "reward_scores", lambda *_, scores=scores: next(scores))
        train(tmp_path / name, epochs=4, plateau_patience=1)
        assert Run(tmp_path / name).metrics()[-1]["reward_net/lr"] == pytest.approx(last)


def test_too_few_triplets_are_refused(tmp_path):
    images, triplets = toy_triplets(3)
    one, none = triplets.take(torch.arange(1)), triplets.take(torch.arange(0))
    for train_part, val in ((one, triplets), (triplets, none)):
        with pytest.raises(ValueError, match="needs at least 2 and 1"):
            train_reward_net(small_net(), train_part, val, images, RewardNetConfig(), Run(tmp_path), 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("learning_rate", math.nan),
        ("plateau_factor", 1.0),
        ("plateau_patience", -1),
        ("early_stop", 0),
        ("action_encoding", "embedding"),
    ],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        RewardNetConfig(**{field: value})
    if field == "action_encoding":
        with pytest.raises(ValueError, match=r"encoding is .embedding"):
            RewardNet(classes=3, encoding=value)

"""Reward networks that are fused, local, or trained to rank two masks."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from segarena.common.networks import load_network, save_network
from segarena.common.runs import Run
from segarena.datasets.images import ImagePool
from segarena.envs.rl4seg import EchoEnv
from segarena.envs.rl4seg_config import EchoEnvConfig
from segarena.rewards.reward_data import Triplets
from segarena.rewards.reward_ensemble import RewardEnsemble, as_one
from segarena.rewards.reward_net import (
    RewardNet,
    RewardNetConfig,
    error_logits,
    ranking_loss,
    train_reward_net,
    training_loss,
)

SIZE = 32


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_net(seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RewardNet(classes=3, init_channels=4, **settings)


class Constant(RewardNet):
    """One map whatever it is asked, and half of it calibrated."""

    def __init__(self, value):
        super().__init__(classes=3, init_channels=2)
        self.value = value

    def forward(self, images, actions, *, calibrated=False):
        return torch.zeros(actions.shape) + (self.value / 2 if calibrated else self.value)


def toy(number=16, seed=0):
    """Images whose grey says the label, and triplets of the labels against these moved."""
    draw, good = generator(seed), torch.zeros(number, SIZE, SIZE, dtype=torch.uint8)
    for label in good:
        y, x = torch.randint(12, (2,), generator=draw).tolist()
        label[y : y + 18, x : x + 18], label[y + 5 : y + 18, x + 5 : x + 13] = 2, 1
    names, classes, spacing = [f"case{n}" for n in range(number)], ("bg", "lv", "myo"), torch.ones(number, 2).double()
    images = ImagePool(60 + 60 * good[:, None], good, names, names, {}, spacing, classes, "phantom")
    bad = good.roll((2, -3), (1, 2))
    return images, Triplets(torch.arange(number), good, bad, torch.zeros(number, dtype=torch.uint8))


# -- fused ---------------------------------------------------------------------------------------------------------


def test_the_maps_of_an_ensemble_have_their_known_values():
    members = [Constant(value) for value in (0.9, 0.5, 0.7)]
    x, a = torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)
    for settings, value in (
        ({"fusion": "min"}, 0.5),
        ({"fusion": "lcb", "width": 1.0}, 0.536701),
        ({"fusion": "lcb", "width": 0.0}, 0.7),
        ({"fusion": "lcb", "width": 9.0}, 0.0),
    ):
        fused = RewardEnsemble(members, **settings)
        torch.testing.assert_close(fused(x, a), torch.full(a.shape, value), atol=1e-6, rtol=0)
        torch.testing.assert_close(fused(x, a, calibrated=True), torch.full(a.shape, 0.35), atol=1e-6, rtol=0)
    assert as_one(members[:1], fusion="min", width=1.0) is members[0]
    assert isinstance(as_one(members, fusion="lcb", width=1.0), RewardEnsemble)
    with pytest.raises(ValueError, match="an ensemble of 1 reward networks fuses nothing"):
        RewardEnsemble(members[:1])
    with pytest.raises(ValueError, match="fusion is 'max' but must be one of 'min', 'lcb'"):
        RewardEnsemble(members, fusion="max")


def test_the_least_is_taken_at_each_pixel():
    members = [Constant(torch.tensor([[0.9, 0.1], [0.5, 0.4]])), Constant(torch.tensor([[0.2, 0.3], [0.8, 0.4]]))]
    fused = RewardEnsemble(members)(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8))
    torch.testing.assert_close(fused, torch.tensor([[[0.2, 0.1], [0.5, 0.4]]]))


def test_the_environment_fuses_the_networks_of_several_files(tmp_path):
    images, triplets = toy(2)
    nets = [small_net(seed) for seed in (0, 1)]
    files = [str(tmp_path / f"{seed}.safetensors") for seed in (0, 1)]
    for file, net in zip(files, nets, strict=True):
        save_network(Path(file), net)
    for fusion in ("min", "lcb"):
        settings = {"reward": "reward_net", "reward_net": files, "fusion": fusion, "lcb_width": 2.0}
        env = EchoEnv(images=images, num_envs=2, device="cpu", **settings)
        env.seed([0, 1])
        env.reset(options={"index": [0, 1]})
        env.step(triplets.a_bad)
        expected = RewardEnsemble(nets, fusion=fusion, width=2.0)(images.at(triplets.images), triplets.a_bad)
        torch.testing.assert_close(env.pixel_reward, expected)
    with pytest.raises(ValueError, match=r"needs reward_net=<weights\.safetensors>"):
        EchoEnvConfig(reward="reward_net", reward_net=[])


# -- local ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "sees"), [(1, 2), (2, 9), (3, 23)])
def test_a_local_network_sees_as_far_as_the_page_says(levels, sees, tmp_path):
    net = small_net(levels=levels).double()
    for weight in net.parameters():
        weight.data.abs_().add_(0.1)  # no rectifier is off
    reach = 0
    for at in range(32, 32 + 2 ** (levels - 1)):
        x = torch.rand(1, 1, 64, 64, dtype=torch.float64, generator=generator()).requires_grad_()
        net.unet(torch.cat([x, x], dim=1))[0, 0, at, at].backward()
        rows = (x.grad[0, 0] != 0).any(dim=1).nonzero()[:, 0]
        reach = max(reach, at - int(rows[0]), int(rows[-1]) - at)
    assert reach == sees
    save_network(tmp_path / "r.safetensors", small_net(levels=levels))
    assert load_network(tmp_path / "r.safetensors", RewardNet).levels == levels


def test_levels_beyond_those_of_the_paper_are_refused():
    with pytest.raises(ValueError, match="levels is 7"):
        small_net(levels=7)
    with pytest.raises(ValueError, match=r"reward_net\.levels is 0"):
        RewardNetConfig(levels=0)


# -- ranked --------------------------------------------------------------------------------------------------------


def test_the_ranking_loss_has_its_known_value_and_moves_both_masks_apart():
    z_good, z_bad = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    wrong = torch.zeros(3, 2, 2, dtype=torch.bool)
    wrong[0, 0], wrong[1, 1, 1] = True, True  # two pixels, one, none
    z_good[0, 0], z_bad[1, 1, 1] = torch.tensor([1.0, 3.0]), 1.0  # margins 2 and -1
    z_good[0, 1], z_bad[2] = 50.0, 50.0  # where the masks agree, nothing counts
    z_good.requires_grad_()
    z_bad.requires_grad_()
    loss = ranking_loss(z_good, z_bad, wrong)
    torch.testing.assert_close(loss, torch.tensor(0.720095), atol=1e-6, rtol=0)
    loss.backward()
    assert (z_good.grad[wrong] < 0).all(), "descent raises the good mask"
    assert (z_bad.grad[wrong] > 0).all()
    assert not z_good.grad[~wrong].any()
    assert not z_bad.grad[~wrong].any()
    assert not ranking_loss(z_good, z_bad, torch.zeros_like(wrong)).detach()


def test_the_ranking_loss_is_added_with_its_weight_and_is_off_without_one():
    images, triplets = toy()
    net = small_net()
    plain = F.binary_cross_entropy_with_logits(*error_logits(net, images, triplets))
    assert torch.equal(training_loss(net, images, triplets, 0.0), plain)
    one, three = (training_loss(net, images, triplets, weight) for weight in (1.0, 3.0))
    torch.testing.assert_close(three - plain, 3 * (one - plain))
    x, wrong = images.at(triplets.images), triplets.a_ref != triplets.a_bad
    by_itself = ranking_loss(net.logits(x, triplets.a_ref), net.logits(x, triplets.a_bad), wrong)
    torch.testing.assert_close(one - plain, by_itself, atol=1e-5, rtol=1e-4)


def test_a_network_that_learns_to_rank_prefers_the_good_masks_of_other_images(tmp_path):
    images, triplets = toy(24)
    rows = torch.arange(24)
    net, run = small_net(encoding="onehot", levels=2), Run(tmp_path)
    config = RewardNetConfig(epochs=12, batch_size=8, learning_rate=0.01, ranking=1.0)
    train_reward_net(net, triplets.take(rows[8:]), triplets.take(rows[:8]), images, config, run, 0)
    run.close()
    x, wrong = images.at(rows[:8]), (triplets.a_ref != triplets.a_bad)[:8]
    with torch.no_grad():
        margin = ((net(x, triplets.a_ref[:8]) - net(x, triplets.a_bad[:8])) * wrong).sum(dim=(1, 2))
    assert (margin > 0).all()

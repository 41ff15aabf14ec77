"""Reward data, the judging of a reward network and AdaBN on a pretended CUDA device: the host seldom waits for it."""

import pytest
import torch
from device_police import DevicePolice
from segarena.datasets.images import ImagePool
from segarena.rewards.reward_data import KINDS, RewardDataConfig, build_reward_data
from segarena.rewards.reward_net import RewardNet, reward_scores
from segarena.segmenters.norms import adapt_batchnorm
from segarena.segmenters.unet import UNet

NUMBER = 32


@pytest.fixture
def police():
    with DevicePolice(watch="segarena") as police:
        yield police
    assert not police.errors, police.errors


def unet():
    """The same at each call."""
    torch.manual_seed(0)
    return UNet(1, 3, init_channels=2).to("cuda")


def pool():
    """Noise, on the device."""
    images = torch.randint(256, (NUMBER, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = [f"case{row}" for row in range(NUMBER)]
    spacing, classes = torch.ones(NUMBER, 2).double(), ("background", "lv", "myo")
    return ImagePool(images, None, names, names, {}, spacing, classes, "phantom").to(torch.device("cuda"))


def reward_data(images, net):
    """Triplets of a policy whose masks are their own corrections, two of three of them valid."""
    judge = lambda masks: torch.arange(len(masks)) % 3 > 0  # noqa: E731
    return build_reward_data(net, images, torch.arange(NUMBER), torch.clone, judge, RewardDataConfig(), 0, 1).triplets


def test_reward_data_wait_once_for_each_perturbation(police):
    images, net = pool(), unet()
    with police.count() as counted:
        triplets = reward_data(images, net)
    assert {KINDS[kind] for kind in triplets.kind.tolist()} >= {"swap", "weights", "contrast", "noise"}
    assert counted.total <= 8 + 12, counted.report()  # the perturbations of a batch, and what is asked once


def test_a_reward_network_is_judged_with_one_wait(police):
    images, net = pool(), RewardNet(classes=3, init_channels=2).to("cuda")
    triplets = reward_data(images, unet())
    with police.count() as counted:
        reward_scores(net, triplets, images, 16)
    assert counted.total == 1, counted.report()


def test_adabn_does_not_wait(police):
    images, net = pool(), unet()
    batches = [images.at(rows) for rows in torch.arange(NUMBER, device="cuda").split(16)]
    with police.count() as counted:
        adapt_batchnorm(net, batches)
    assert counted.total == 0, counted.report()

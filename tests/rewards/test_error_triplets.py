"""Triplets of the source's true errors, of the policy's present masks, and mixed by region."""

import pytest
import torch
from segarena.datasets.images import ImagePool
from segarena.rewards.error_triplets import hard_negatives, mixed, source_triplets
from segarena.rewards.reward_data import KINDS, RewardDataConfig, Triplets
from segarena.segmenters.inference import segment
from torch import nn

SIZE = 32
GREY = (20, 120, 220)
CONFIG = RewardDataConfig(batch_size=4, weight_noise=(0.01,), contrast=(0.7,), noise=(0.1,))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class GreyPolicy(nn.Module):
    """Labels each pixel by its grey alone."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(GREY).float().view(1, 3, 1, 1) / 255 + shift)

    def forward(self, x):
        return -20 * (x - self.centre).abs()


def pool_of(number=9, seed=0):
    """Squares of LV (grey 120) within MYO in grey with noise, and their labels; the wall is hard to see."""
    draw, labels = generator(seed), torch.zeros(number, SIZE, SIZE, dtype=torch.uint8)
    for label in labels:
        y, x = torch.randint(1, 9, (2,), generator=draw).tolist()
        label[y : y + 20, x : x + 20], label[y + 5 : y + 20, x + 5 : x + 15] = 2, 1
    grey = torch.tensor(GREY)[labels.long()] + torch.randint(-60, 61, labels.shape, generator=draw)
    names, patients = [f"case{row}" for row in range(number)], [f"patient{row // 2}" for row in range(number)]
    classes, spacing = ("background", "lv", "myo"), torch.ones(number, 2).double()
    return ImagePool(grey.clamp(0, 255).byte()[:, None], labels, names, patients, {}, spacing, classes, "phantom")


def of_kind(triplets, kind):
    return triplets.take(triplets.kind == KINDS.index(kind))


def test_the_good_masks_of_source_triplets_are_the_true_ones():
    images, rows, net = pool_of(), torch.tensor([7, 2, 5, 0, 8, 1]), GreyPolicy()
    triplets = source_triplets(net, images, rows, CONFIG, seed=3, iteration=1)
    assert triplets.counts() == {
        **dict.fromkeys(("argmax", "sampled", "swap", "weights", "contrast", "noise"), 6),
        **dict.fromkeys(("correction", "identity", "hard"), 0),
    }
    assert torch.equal(triplets.a_ref, images.labels[triplets.images])
    for kind in ("argmax", "sampled", "swap", "weights", "contrast", "noise"):
        assert sorted(of_kind(triplets, kind).images.tolist()) == sorted(rows.tolist()), kind
    own = of_kind(triplets, "argmax")
    assert torch.equal(own.a_bad, segment(net, images.images)[own.images])
    wrong = (own.a_bad != own.a_ref).float().mean()
    assert 0.01 < wrong < 0.5, "the errors are those that the policy makes"
    assert not torch.equal(of_kind(triplets, "sampled").a_bad, own.a_bad)
    again = source_triplets(net, images, rows, CONFIG, seed=3, iteration=1)
    assert torch.equal(again.a_bad, triplets.a_bad)
    other = source_triplets(net, images, rows, CONFIG, seed=3, iteration=2)
    assert torch.equal(of_kind(other, "argmax").a_bad, own.a_bad)
    assert not torch.equal(of_kind(other, "noise").a_bad, of_kind(triplets, "noise").a_bad)


def test_source_triplets_have_the_kinds_that_are_on_and_need_labels():
    config = RewardDataConfig(swap=False, model=False, image=False, identity=True)
    triplets = source_triplets(GreyPolicy(), pool_of(), torch.arange(3), config, seed=0, iteration=1)
    assert {kind for kind, number in triplets.counts().items() if number} == {"argmax", "sampled", "identity"}
    same = of_kind(triplets, "identity")
    assert torch.equal(same.a_bad, same.a_ref)
    assert len(source_triplets(GreyPolicy(), pool_of(), torch.arange(0), config, seed=0, iteration=1)) == 0
    with pytest.raises(ValueError, match="case0 has no labels"):
        source_triplets(GreyPolicy(), pool_of().without_labels(), torch.arange(3), config, seed=0, iteration=1)


def test_hard_negatives_are_the_present_masks_where_they_differ_from_the_good_ones():
    images, rows = pool_of(), torch.tensor([4, 0, 6])
    now = segment(GreyPolicy(), images.images)[rows]
    good = now.clone()
    good[0, 3, 3] = (good[0, 3, 3] + 1) % 3
    good[2] = 0
    triplets = hard_negatives(GreyPolicy(), images, rows, good)
    assert triplets.images.tolist() == [4, 6]
    assert torch.equal(triplets.a_bad, now[[0, 2]])
    assert torch.equal(triplets.a_ref, good[[0, 2]])
    assert triplets.counts()["hard"] == 2
    assert len(hard_negatives(GreyPolicy(), images, rows[:0], good[:0])) == 0


def test_after_mixing_the_place_says_nothing_about_the_error():
    """One region is wrong in every bad mask: afterwards in half of them."""
    number = 400
    good = torch.ones(number, 8, 8, dtype=torch.uint8)
    bad = good.clone()
    bad[:, 2:4, 2:4], bad[:, 6, :] = 2, 0
    kind = torch.zeros(number, dtype=torch.uint8)
    triplets = Triplets(torch.arange(number), good, bad, kind)
    found = mixed(triplets, 0.5, seed=1)
    assert torch.equal(found.a_ref, good)
    assert torch.equal(found.images, triplets.images)
    e = (found.a_bad == good).float()
    assert set(e[:, 2:4, 2:4].mean(dim=(1, 2)).tolist()) == {0.0, 1.0}
    assert float(e[:, 2, 2].mean()) == pytest.approx(0.5, abs=0.08)
    assert float(e[:, 6].mean()) == pytest.approx(0.5, abs=0.08)
    assert float(((e[:, 2, 2] - 0.5) * (e[:, 6, 0] - 0.5)).mean()) == pytest.approx(0, abs=0.05), "on their own"
    assert e[:, 0].all()
    assert torch.equal(found.a_bad, mixed(triplets, 0.5, seed=1).a_bad)
    assert not torch.equal(found.a_bad, mixed(triplets, 0.5, seed=2).a_bad)

"""Rewards that prefer the truth, its contrary, or nothing at all; and the regions that are asked about."""

import math

import pytest
import torch
from scipy import ndimage
from segarena.datasets.images import ImagePool
from segarena.rewards.ranking import truth_preferred
from segarena.rewards.regions import disagreement, mix_regions

SIZE = 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blotches(number, seed=0):
    """Masks of three labels in pieces of some pixels."""
    coarse = torch.randint(3, (number, SIZE // 4, SIZE // 4), generator=generator(seed), dtype=torch.uint8)
    return coarse.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


def nearly(masks, share=0.1, seed=1):
    """The masks with some pieces of another label."""
    coarse = torch.rand(len(masks), SIZE // 4, SIZE // 4, generator=generator(seed)) < share
    wrong = coarse.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    return torch.where(wrong, (masks + 1) % 3, masks)


def pool_of(labels):
    """Images that tell their labels by their grey: 100 times the label."""
    number = len(labels)
    names = [f"case{row}" for row in range(number)]
    classes = ("background", "lv", "myo")
    return ImagePool(
        100 * labels[:, None], labels, names, names, {}, torch.ones(number, 2).double(), classes, "phantom"
    )


def truth_of(images):
    return (images[:, 0] * 2.55).round().byte()


def by_truth(images, masks):
    return (masks == truth_of(images)).float()


def by_place(images, masks):
    """High at the border of the image, low in its middle, whatever the labels are."""
    place = torch.linspace(-1, 1, SIZE).abs()
    return torch.maximum(place[:, None], place).expand(masks.shape)


@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize(
    ("judge", "share"),
    [
        (by_truth, 1.0),
        (lambda images, masks: 1 - by_truth(images, masks), 0.0),
        (by_place, 0.5),
        (lambda images, masks: by_truth(images, masks).mean(dim=(1, 2), keepdim=True), 1.0),
    ],
    ids=["truth", "inverted", "place only", "one number an image"],
)
def test_the_ranking_of_a_reward_that_is_known(judge, share, batch_size):
    truth = blotches(7)
    found = truth_preferred(judge, pool_of(truth), nearly(truth), batch_size)
    assert found.image.tolist() == found.regions.tolist() == [share] * 7
    assert found.means() == {"truth_preferred": share, "truth_preferred_regions": share}


def test_a_reward_that_sees_one_label_only_is_right_about_the_regions_of_that_label():
    """And of the two masks of an image prefers the one with more right pixels of it."""
    truth = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    truth[:, 4:8, 4:12] = 1
    own = torch.zeros_like(truth)
    own[:, 16:20, 4:8] = 2
    own[:, 4:8, 16:20] = 2
    found = truth_preferred(lambda images, masks: (masks == 1).float(), pool_of(truth), own)
    assert found.image.tolist() == [1.0]
    assert found.regions.tolist() == [pytest.approx((1 + 0.5 + 0.5) / 3)], "the region of LV is right, two are ties"
    found = truth_preferred(lambda images, masks: (masks == 2).float(), pool_of(truth), own)
    assert found.image.tolist() == [0.0]
    assert found.regions.tolist() == [pytest.approx(0.5 / 3)]


def test_a_region_is_judged_with_the_other_regions_as_the_policy_has_them():
    """And by the reward in the region: what a swap does elsewhere does not count."""
    truth, own = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.uint8)
    own[:, 2:6, 2:6], own[:, 12:16, 12:16] = 1, 2
    asked = []

    def judge(images, masks):
        asked.append(masks)
        inside = (masks == 0).float()
        inside[:, 20:, 20:] = -100 * (masks == 0).float().mean(dim=(1, 2))[:, None, None]
        return inside

    found = truth_preferred(judge, pool_of(truth), own)
    assert found.regions.tolist() == [1.0]
    assert found.image.tolist() == [0.0]
    swapped = asked[-1]
    for mask, (kept, put_right) in zip(swapped, [(2, 1), (1, 2)], strict=True):
        assert kept in mask
        assert put_right not in mask


def test_images_without_labels_are_not_asked_and_right_masks_do_not_count():
    truth = blotches(4)
    own = nearly(truth)
    own[2] = truth[2]
    images = pool_of(truth)
    found = truth_preferred(by_truth, images, own)
    assert [math.isnan(value) for value in found.image] == [False, False, True, False]
    assert [math.isnan(value) for value in found.regions] == [False, False, True, False]
    assert found.means()["truth_preferred"] == 1.0
    assert truth_preferred(by_truth, images, truth).means() == {}
    unknown = ImagePool.concatenate([images.take([0, 1]).without_labels(), images.take([2, 3])])
    assert len(truth_preferred(by_truth, unknown, own).image) == 2
    with pytest.raises(ValueError, match=r"masks are \[4, 24, 24\] and 4 of 4 images have no labels"):
        truth_preferred(by_truth, images.without_labels(), own)


# -- regions -------------------------------------------------------------------------------------------------------


def test_the_regions_are_the_components_of_each_image():
    good = torch.randint(3, (5, SIZE, SIZE), generator=generator(), dtype=torch.uint8)
    bad = torch.where(torch.rand(good.shape, generator=generator(1)) < 0.4, (good + 1) % 3, good)
    bad[3] = good[3]
    found = disagreement(good, bad)
    counts = [ndimage.label((a != b).numpy())[1] for a, b in zip(good, bad, strict=True)]
    assert torch.bincount(found.image, minlength=5).tolist() == counts
    assert torch.equal(found.number > 0, good != bad)
    for number, image in enumerate(found.image.tolist()):
        places = found.number == number + 1
        assert places.flatten(1).any(dim=1).nonzero()[:, 0].tolist() == [image]
        assert ndimage.label(places[image].numpy())[1] == 1
    means = found.means(torch.arange(len(found.image)))
    assert means[0] == sum(range(counts[0])) / counts[0]
    assert math.isnan(means[3])
    with pytest.raises(ValueError, match=r"masks are \[5, 24, 24\] and \[4, 24, 24\]"):
        disagreement(good, bad[:4])


def test_whole_regions_are_put_right_each_with_its_own_chance():
    good = blotches(60)
    bad = nearly(good, share=0.08, seed=2)
    mixed = mix_regions(good, bad, 0.5, generator())
    number, image = disagreement(good, bad)
    right = [bool((mixed == good)[number == one + 1].all()) for one in range(len(image))]
    wrong = [bool((mixed == bad)[number == one + 1].all()) for one in range(len(image))]
    assert all(a != b for a, b in zip(right, wrong, strict=True)), "one or the other, as a whole"
    assert torch.equal(mixed[number == 0], good[number == 0])
    assert 0.4 < sum(right) / len(right) < 0.6
    both = [len({right[n] for n in range(len(image)) if image[n] == one}) for one in range(60)]
    assert max(both) == 2, "regions of one image are drawn apart"
    assert torch.equal(mixed, mix_regions(good, bad, 0.5, generator()))
    assert torch.equal(mix_regions(good, bad, 0.0, generator()), bad)
    assert torch.equal(mix_regions(good, bad, 1.0, generator()), good)
